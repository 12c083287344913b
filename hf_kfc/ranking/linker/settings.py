"""How a linker finds, shows and judges candidates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ...errors import DataError
from ..retrieval import RETRIEVERS

__all__ = ["LinkerSettings"]

_LEAST = {"num_candidates": 2, "context_words": 0, "max_length": 1, "max_name_length": 1}
_MOST = 100_000


@dataclass(frozen=True)
class LinkerSettings:
    """How a linker finds, shows and judges candidates.

    All but the last three are as the ranker's examples were made
    (:class:`~hf_kfc.ranking.corpora.config.RankingConfig`): a ranker knows nothing else.

    Args:
        retrieval: How candidates are found: ``"bm25"`` or ``"tfidf"``.
        num_candidates: How many are ranked, at least 2.
        context_words: Words of context on each side of a mention.
        show_types: Whether the name of a candidate carries its semantic types.
        max_length: The most tokens of text and candidate name together.
        max_name_length: The most tokens of a candidate name.
        retrieval_weight: How much retrieval's score counts beside the ranker's, which has not seen
            how alike mention and names are spelled; 0: not at all.
        temperature: What the sum of both is divided by before the softmax.
        nil_threshold: The least probability with which a concept is given; none: any.

    Raises:
        DataError: A value is out of its range.
    """

    retrieval: str = "bm25"
    num_candidates: int = 10
    context_words: int = 10
    show_types: bool = False
    max_length: int = 96
    max_name_length: int = 32
    retrieval_weight: float = 0.0
    temperature: float = 1.0
    nil_threshold: float | None = None

    def __post_init__(self) -> None:
        if self.retrieval not in [*RETRIEVERS]:  # a value that cannot be hashed is none of them
            raise DataError(f"retrieval is {self.retrieval!r}; give {' or '.join(RETRIEVERS)}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not (type(value) is int and least <= value <= _MOST):
                raise DataError(f"{name} is {value!r}; give a whole number of at least {least}")
        if type(self.show_types) is not bool:
            raise DataError(f"show_types is {self.show_types!r}; give True or False")
        if not (_is_number(self.temperature) and 0 < self.temperature < math.inf):
            raise DataError(f"temperature is {self.temperature!r}; give a number above 0")
        if not (_is_number(self.retrieval_weight) and 0 <= self.retrieval_weight < math.inf):
            raise DataError(
                f"retrieval_weight is {self.retrieval_weight!r}; give a number of at least 0"
            )
        threshold = self.nil_threshold
        if threshold is not None and not (_is_number(threshold) and 0 <= threshold <= 1):
            raise DataError(f"nil_threshold is {threshold!r}; give a number from 0 to 1, or None")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> LinkerSettings:
        """Make settings of values by name.

        Raises:
            DataError: There is no such setting, or a value is out of its range.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise DataError(f"a linker has no setting {name!r}; use {', '.join(known)}")
        return cls(**values)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
