"""Ontologies as JSON lines: all that a concept has, in text that anybody can read and check."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..concepts import canonical_id, concept_from_names
from ..formats.lines import read_json_lines
from ..problems import Problems
from ..schema import Concept

__all__ = ["read_concepts", "write_concepts"]

_LONGEST = 10_000  # characters of a name
# What would begin another line, or turn the direction of writing, wherever the text is shown.
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def read_concepts(*paths: str | Path, problems: Problems | None = None) -> Iterator[Concept]:
    """Read concepts, one a line.

    A line is ``{"id": ..., "names": [...]}``, the preferred name first, and may have ``"types"``
    and ``"alternatives"``, other identifiers, which are lists too.

    Args:
        *paths: The files, gzipped or not.
        problems: Told of lines that are not so, of texts with control characters or of more than
            10,000 characters, and of concepts that come twice; by default they raise.

    Yields:
        The concepts in the order of their lines.

    Raises:
        DataError: A file is missing, or ``problems`` raises.
    """
    problems = problems or Problems()
    seen: set[str] = set()
    for path in paths:
        for where, record in read_json_lines(path, problems):
            id_, *lists = (record.get(k) for k in ("id", "names", "types", "alternatives"))
            names, types, others = (() if own is None else own for own in lists)
            if not (
                isinstance(id_, str)
                and _fit(id_)
                and names
                and all(map(_all_fit, (names, types, others)))
            ):
                message = (
                    "expected {'id': ..., 'names': [...]}, all printable texts; correct the line"
                )
                problems("line is no concept", where, message)
            elif canonical_id(id_) in seen:
                problems("concept comes twice", where, f"{id_!r:.80} comes twice; merge the two")
            else:
                seen.add(canonical_id(id_))
                yield concept_from_names(id_, names, types, others)


def write_concepts(concepts: Iterable[Concept], path: str | Path) -> None:
    """Write concepts as :func:`read_concepts` reads them.

    Args:
        concepts: The concepts.
        path: The file, which is replaced.
    """
    with Path(path).open("w", encoding="utf-8") as file:
        for concept in concepts:
            row: dict[str, Any] = {"id": concept.id, "names": concept.names}
            if concept.types:
                row["types"] = concept.types
            if concept.alternatives:
                row["alternatives"] = concept.alternatives
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _fit(text: Any) -> bool:
    return (
        isinstance(text, str)
        and 0 < len(text) <= _LONGEST
        and bool(text.strip())
        and not _UNFIT.search(text)
    )


def _all_fit(texts: Any) -> bool:
    return isinstance(texts, list | tuple) and all(map(_fit, texts))
