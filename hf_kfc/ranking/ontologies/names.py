"""Vocabularies of lines ``id<TAB>name``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ...errors import DataError
from ..concepts import concept_from_names
from ..formats.lines import read_lines
from ..problems import Problems
from ..schema import Concept

__all__ = ["read_names"]

_TITLE = re.compile(r"(concept|term|mesh|umls|icd\w*)?[ _-]*(id|ids|identifier|code|cui)", re.I)
_NUMBERED = re.compile(r"\S*[0-9]\S*")  # as identifiers are: one word with a digit
_ENOUGH = 10  # concepts, to tell what a column holds


def read_names(*paths: str | Path, problems: Problems | None = None) -> Iterator[Concept]:
    """Read a vocabulary of lines ``id<TAB>name``; a concept may have several lines.

    Args:
        *paths: The files, gzipped or not.
        problems: Told of lines that do not hold exactly an id and a name; by default they raise.

    Yields:
        The concepts in the order of their first lines; the first name is the preferred one.

    Raises:
        DataError: A file is missing or begins with a header, the names stand before the ids, or
            ``problems`` raises.
    """
    problems = problems or Problems()
    names: dict[str, list[str]] = {}
    for path in paths:
        for number, line in read_lines(path, problems):
            fields = [field.strip() for field in line.split("\t")]
            if len(fields) != 2 or not all(fields):
                message = f"expected 'id<TAB>name', got {line[:80]!r}; correct or remove the line"
                problems("line is not 'id<TAB>name'", f"{path}:{number}", message)
                continue
            if number == 1 and _TITLE.fullmatch(fields[0]):
                raise DataError(f"{path}:1: a header, {line[:80]!r}; remove it")
            names.setdefault(fields[0], []).append(fields[1])
    _check_order(names, paths)
    for id_, spellings in names.items():
        yield concept_from_names(id_, spellings)


def _check_order(names: Mapping[str, Iterable[str]], paths: Iterable[str | Path]) -> None:
    """Refuse a file whose second column looks like identifiers and whose first does not."""
    spoken = sum(not _NUMBERED.fullmatch(id_) for id_ in names)
    numbered = sum(all(map(_NUMBERED.fullmatch, own)) for own in names.values())
    if len(names) >= _ENOUGH and min(spoken, numbered) > 0.9 * len(names):
        raise DataError(
            f"{', '.join(map(str, paths))}: the second column looks like identifiers and the first "
            "like names; put the identifiers first"
        )
