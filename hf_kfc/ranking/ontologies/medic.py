"""MEDIC, the disease vocabulary of CTD, as lines ``ids||names``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ..concepts import canonical_id, concept_from_names
from ..formats.lines import read_lines
from ..problems import Problems
from ..schema import Concept

__all__ = ["read_medic"]

_MESH_ID = re.compile(r"(MESH:)?[CD][0-9]*")


def read_medic(*paths: str | Path, problems: Problems | None = None) -> Iterator[Concept]:
    """Read MEDIC as lines ``ids||names``, both between bars: ``C566466|610508||MODY7|MODY 7``.

    A line often has a MeSH and an OMIM identifier, in either order. The first that is MeSH's, since
    corpora use those, or else the first is the concept's own; the others are alternative ones.

    Args:
        *paths: The files, gzipped or not.
        problems: Told of lines without an identifier or a name, and of those whose concept an
            earlier line has; by default they raise.

    Yields:
        The concepts in the order of their lines; the first name is the preferred one.

    Raises:
        DataError: A file is missing, or ``problems`` raises.
    """
    problems = problems or Problems()
    seen: set[str] = set()
    for path in paths:
        for number, line in read_lines(path, problems):
            where = f"{path}:{number}"
            ids, names = (
                [item.strip() for item in part.split("|")] for part in line.partition("||")[::2]
            )
            if not (all(ids) and all(names)):
                message = f"expected 'ids||names', got {line[:80]!r}; correct or remove the line"
                problems("line is not 'ids||names'", where, message)
                continue
            id_ = next(filter(_MESH_ID.fullmatch, ids), ids[0])
            if canonical_id(id_) in seen:
                message = f"concept {id_!r} comes twice; remove one of its lines"
                problems("concept comes twice", where, message)
                continue
            seen.add(canonical_id(id_))
            yield concept_from_names(id_, names, alternatives=ids)
