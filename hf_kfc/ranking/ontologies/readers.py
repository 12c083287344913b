"""The ontology formats by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..concepts import is_nil
from ..problems import Problems, refuse_text
from ..schema import Concept
from .icd10cm import read_icd10cm
from .json_lines import read_concepts
from .medic import read_medic
from .mesh import read_mesh
from .names import read_names
from .obo import read_obo
from .ontology import Ontology
from .umls import read_umls

__all__ = ["ONTOLOGY_FORMATS", "read_file", "read_ontology"]

_NUMBERED = re.compile(r"\S*[0-9]\S*")  # as identifiers are: one word with a digit
_ENOUGH = 10  # concepts, to tell what a column holds

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
            missing, that the files hold no concept, or one by an identifier that stands for none
            in corpora (:func:`~hf_kfc.ranking.concepts.is_nil`), that names stand where
            identifiers should and the other way, or what ``problems`` raises.
    """
    refuse_text("paths", paths)
    if format_ not in ONTOLOGY_FORMATS:
        raise DataError(f"ontology format {format_!r}; use {', '.join(ONTOLOGY_FORMATS)}")
    try:
        concepts = ONTOLOGY_FORMATS[format_](*paths, problems=problems, **(options or {}))
    except TypeError as error:
        raise DataError(f"ontology format {format_!r} with options {options}: {error}") from error
    return _checked(concepts, ", ".join(map(str, paths)), format_)


def read_file(path: str | Path, format_: str | None = None) -> Ontology:
    """Hold a file of concepts; the format is told by its name where nobody says it."""
    if format_ is None:
        format_ = "json" if str(path).removesuffix(".gz").endswith(".jsonl") else "names"
    return Ontology(read_ontology([path], format_))


def _checked(concepts: Iterable[Concept], where: str, format_: str) -> Iterator[Concept]:
    # The train mentions may name concepts of their own, and would hide that the file has none, or
    # none with the identifiers of the corpus.
    number = spoken = numbered = 0
    for concept in concepts:
        if is_nil(concept.id):
            raise DataError(
                f"{where}: {concept.id!r}, called {concept.name!r:.80}, stands for no concept in "
                "corpora, so that no mention could mean it; remove it or give it another identifier"
            )
        number += 1
        spoken += not _NUMBERED.fullmatch(concept.id)
        numbered += all(map(_NUMBERED.fullmatch, concept.names))
        yield concept
    if not number:
        raise DataError(f"{where}: no concept in format {format_!r}; check the file and the format")
    if number >= _ENOUGH and min(spoken, numbered) > 0.9 * number:
        raise DataError(
            f"{where}: the names look like identifiers and the identifiers like names; swap the two"
        )
