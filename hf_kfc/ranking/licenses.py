"""What the licences of corpora and ontologies allow to be passed on; they stand in a TOML file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

__all__ = ["CORPUS_LICENSES", "ONTOLOGY_LICENSES", "License"]


@dataclass(frozen=True, slots=True)
class License:
    """A licence, as far as pushing a data set needs to know it.

    Args:
        name: Its name, for readers.
        url: Where its terms stand.
        redistributable: Whether the text may be passed on to anyone.
        citation: What its terms or its authors ask to be cited.
        id: The Hub's identifier of it, ``"other"`` where the Hub knows none.
    """

    name: str
    url: str
    redistributable: bool
    citation: str = ""
    id: str = "other"


_KNOWN = tomllib.loads(files(__package__).joinpath("licenses.toml").read_text(encoding="utf-8"))

CORPUS_LICENSES: Mapping[str, License] = {k: License(**v) for k, v in _KNOWN["corpora"].items()}
"""The licences of the texts of the corpora."""

ONTOLOGY_LICENSES: Mapping[str, License] = {
    k: License(**v) for k, v in _KNOWN["ontologies"].items()
}
"""The licences of ontologies by their format, where it tells which, and of other names."""
