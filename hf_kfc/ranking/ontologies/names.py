"""Vocabularies of lines ``id<TAB>name``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..concepts import concept_from_names
from ..formats.lines import read_lines
from ..problems import Problems
from ..schema import Concept

__all__ = ["read_names"]


def read_names(*paths: str | Path, problems: Problems | None = None) -> Iterator[Concept]:
    """Read a vocabulary of lines ``id<TAB>name``; a concept may have several lines.

    Args:
        *paths: The files, gzipped or not.
        problems: Told of lines that do not hold exactly an id and a name; by default they raise.

    Yields:
        The concepts in the order of their first lines; the first name is the preferred one.

    Raises:
        DataError: A file is missing, or ``problems`` raises.
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
            names.setdefault(fields[0], []).append(fields[1])
    for id_, spellings in names.items():
        yield concept_from_names(id_, spellings)
