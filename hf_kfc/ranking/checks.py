"""Checks that ranking examples can be learnt from, whoever made them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import DataError

__all__ = ["check_examples"]


def check_examples(examples: Iterable[Mapping[str, Any]]) -> int:
    """Check a split of ranking examples, and return how many there are.

    Raises:
        DataError: There is no example; two have one id; or in one of them the mention is empty,
            there are fewer than two candidates, ids and names of the candidates do not pair up,
            a candidate comes twice or the gold is absent from the candidates.
    """
    seen: set[str] = set()
    for example in examples:
        problem = "its id comes twice; make ids unique" if example["id"] in seen else None
        problem = problem or _problem(example)
        if problem:
            raise DataError(f"example {example['id']!r}: {problem}")
        seen.add(example["id"])
    if not seen:
        raise DataError("the split has no example; build it from at least one mention")
    return len(seen)


def _problem(example: Mapping[str, Any]) -> str | None:
    ids, names, label = example["candidate_ids"], example["candidate_names"], example["label"]
    if not example["mention"].strip():
        return "the mention is empty; remove it or correct its span"
    if len(ids) != len(names):
        return f"{len(ids)} candidate ids but {len(names)} names; give each candidate both"
    if len(ids) < 2:
        return f"{len(ids)} candidate(s); ranking needs at least 2"
    if len(set(ids)) != len(ids):
        return "a candidate comes twice; make the candidates distinct"
    if not 0 <= label < len(ids):
        return f"gold absent from candidates: label {label} of {len(ids)}; put the gold in"
    return None
