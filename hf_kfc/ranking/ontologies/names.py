"""Vocabularies of lines ``id<TAB>name``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ...errors import DataError
from ..concepts import canonical_id, concept_from_names
from ..formats.lines import read_lines
from ..problems import Problems
from ..schema import Concept

__all__ = ["read_names"]

_KIND = r"(?:[\w -]*[ _-]|concept|disease|entity|icd[\w-]*|mesh|preferred|term|umls)?"
_ID_TITLE = re.compile(
    _KIND + "(id|ids|identifiers?|codes?|cui|curie|ui|uri|key|concept|accession|sctid)", re.I
)
_NAME_TITLE = re.compile(
    _KIND + "(names?|labels?|terms?|titles?|desc|descriptions?|synonyms?|strings?|str|text)", re.I
)


def read_names(*paths: str | Path, problems: Problems | None = None) -> Iterator[Concept]:
    """Read a vocabulary of lines ``id<TAB>name``; a concept may have several lines.

    Args:
        *paths: The files, gzipped or not.
        problems: Told of lines that do not hold exactly an id and a name; by default they raise.

    Yields:
        The concepts in the order of their first lines; the first name is the preferred one.

    Raises:
        DataError: A file is missing or begins with a header, or ``problems`` raises.
    """
    problems = problems or Problems()
    names: dict[str, tuple[str, list[str]]] = {}
    for path in paths:
        for number, line in read_lines(path, problems):
            fields = [field.strip() for field in line.split("\t")]
            if len(fields) != 2 or not all(fields):
                message = f"expected 'id<TAB>name', got {line[:80]!r}; correct or remove the line"
                problems("line is not 'id<TAB>name'", f"{path}:{number}", message)
                continue
            if number == 1 and _is_header(*fields):
                raise DataError(f"{path}:1: a header, {line[:80]!r}; remove it")
            names.setdefault(canonical_id(fields[0]), (fields[0], []))[1].append(fields[1])
    for id_, spellings in names.values():
        yield concept_from_names(id_, spellings)


def _is_header(first: str, second: str) -> bool:
    """Whether two fields, in either order, are titles of columns; identifiers have digits."""
    first, second = (field.lstrip("#").strip() for field in (first, second))
    if re.search("[0-9]", re.sub("icd.?10", "", first, flags=re.I)):
        return False
    swapped = _NAME_TITLE.fullmatch(first) and _ID_TITLE.fullmatch(second)
    return bool(_ID_TITLE.fullmatch(first) or _NAME_TITLE.fullmatch(second) or swapped)
