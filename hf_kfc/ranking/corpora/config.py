"""How mentions become ranking examples, and which split a document belongs to."""

from __future__ import annotations

import hashlib
from bisect import bisect
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import datasets

from ...errors import DataError
from ..problems import ON_ERROR, refuse_text
from ..retrieval import RETRIEVERS

__all__ = ["SPLITS", "RankingConfig", "one_of", "split_by_hash", "stable_fraction"]

SPLITS = ("train", "validation", "test")
"""The splits that every corpus has."""


def split_by_hash(document: str) -> str:
    """Choose the split of a document where a corpus has none: 70 %, 15 % and 15 % of all."""
    return SPLITS[bisect((0.70, 0.85), stable_fraction(document))]


def stable_fraction(text: str) -> float:
    """Hash a text to a number in [0, 1), the same in every process and version."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48


def one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    """Refuse a value of a setting that is not among those allowed."""
    allowed = list(allowed)
    if value not in allowed:
        raise DataError(f"{name} is {value!r}; give {' or '.join(map(repr, allowed))}")


@dataclass
class RankingConfig(datasets.BuilderConfig):  # type: ignore[misc]  # untyped
    """How mentions become ranking examples; every value is part of the cache key.

    Args:
        num_candidates: Candidates of an example, the gold concept included (at least 2).
        context_words: Words of context kept on each side of the mention.
        retrieval: How candidates are found: ``"bm25"`` or ``"tfidf"`` (character trigrams).
        ontology_format: Format of the file ``ontology``, a key of ``ONTOLOGY_FORMATS``.
        ontology_options: What the format's reader takes beside, for example
            ``{"languages": ["ENG"]}``.
        names_from: Splits whose words for a concept become synonyms of it, and names where the
            ontology has none: ``["train"]``, none, or validation too (which then says nothing of
            how well new words are found); never test.
        show_types: Whether the name of a candidate carries its semantic types, in brackets.
        on_unknown_concept: What to do with a mention whose gold concept is not in the ontology:
            ``"count"`` and drop it, or ``"raise"``, also where words of mentions would have
            named it.
        on_error: What to do with a malformed record: ``"raise"``, or leave it out and ``"count"``.
        max_examples: Limit per split; a seeded random subset of the usable mentions is drawn,
            and kept in the corpus's order. A split without a limit keeps all.
        seed: Seed of that draw and of the order of the candidates.
    """

    num_candidates: int = 10
    context_words: int = 10
    retrieval: str = "bm25"
    ontology_format: str = "names"
    ontology_options: dict[str, Any] | None = None
    names_from: list[str] = field(default_factory=lambda: ["train"])
    show_types: bool = False
    on_unknown_concept: str = "count"
    on_error: str = "raise"
    max_examples: dict[str, int] | None = None
    seed: int = 0

    def check(self) -> None:
        """Check the values; a constructor cannot, since `datasets` also sets them afterwards.

        Raises:
            DataError: A value is out of its range.
        """
        if self.num_candidates < 2:
            raise DataError(f"num_candidates is {self.num_candidates}; give at least 2")
        if self.context_words < 0:
            raise DataError(f"context_words is {self.context_words}; give 0 or more")
        one_of("retrieval", self.retrieval, RETRIEVERS)
        one_of("on_unknown_concept", self.on_unknown_concept, ("count", "raise"))
        one_of("on_error", self.on_error, ON_ERROR)
        names_from = refuse_text("names_from", self.names_from)
        for split in names_from:
            one_of("a split in names_from", split, SPLITS[:-1])
        for split, limit in (self.max_examples or {}).items():
            one_of("a split in max_examples", split, SPLITS)
            if limit < 1:
                raise DataError(f"max_examples[{split!r}] is {limit}; give at least 1")
