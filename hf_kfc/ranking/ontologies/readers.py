"""The ontology formats by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..problems import Problems
from ..schema import Concept
from .icd10cm import read_icd10cm
from .json_lines import read_concepts
from .medic import read_medic
from .mesh import read_mesh
from .names import read_names
from .obo import read_obo
from .umls import read_umls

__all__ = ["ONTOLOGY_FORMATS", "read_ontology"]

ONTOLOGY_FORMATS: dict[str, Callable[..., Iterable[Concept]]] = {
    "names": read_names,
    "umls": read_umls,
    "icd10cm": read_icd10cm,
    "mesh": read_mesh,
    "medic": read_medic,
    "obo": read_obo,
    "json": read_concepts,
}
"""Readers by the name of their format: each takes the paths of the ontology's files, and by name
``problems`` and options of its own."""


def read_ontology(
    paths: Sequence[str | Path],
    format_: str = "names",
    options: Mapping[str, Any] | None = None,
    problems: Problems | None = None,
) -> Iterable[Concept]:
    """Read the concepts of an ontology.

    Args:
        paths: Its file, or files.
        format_: A key of ``ONTOLOGY_FORMATS``.
        options: What the format's reader takes beside path and problems.
        problems: Told of malformed records; by default they raise.

    Returns:
        The concepts, read as they are asked for.

    Raises:
        DataError: There is no such format or option; and, as they are read, that a file is
            missing, that the files hold no concept, or what ``problems`` raises.
    """
    if format_ not in ONTOLOGY_FORMATS:
        raise DataError(f"ontology format {format_!r}; use {', '.join(ONTOLOGY_FORMATS)}")
    try:
        concepts = ONTOLOGY_FORMATS[format_](*paths, problems=problems, **(options or {}))
    except TypeError as error:
        raise DataError(f"ontology format {format_!r} with options {options}: {error}") from error
    return _some(concepts, f"{', '.join(map(str, paths))}: no concept in format {format_!r}")


def _some(concepts: Iterable[Concept], message: str) -> Iterator[Concept]:
    # The train mentions may name concepts of their own, and would hide that the file has none.
    empty = True
    for concept in concepts:
        empty = False
        yield concept
    if empty:
        raise DataError(f"{message}; check the file and the format")
