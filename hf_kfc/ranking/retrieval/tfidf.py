"""TF-IDF over character trigrams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .base import folded
from .sparse import SparseRetriever, count_vectorizer

__all__ = ["TfidfRetriever"]


class TfidfRetriever(SparseRetriever):
    """Cosine similarity of character trigrams weighted by TF-IDF, over every name.

    The candidates of Murty et al. 2018 for MedMentions. Misspellings and inflections still match,
    so the candidates are near in spelling and harder to tell apart than BM25's. The weights are
    those of scikit-learn's ``TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3))``.

    Args:
        ontology: The ontology.

    Raises:
        DataError: Every name is blank.
    """

    VERSION = 5

    @staticmethod
    def normalised(text: str) -> str:
        """Fold case and marks, and keep one space between words."""
        return " ".join(folded(text).split())

    @staticmethod
    def _vectorizer(vocabulary: Sequence[str] | None) -> Any:
        return count_vectorizer(analyzer="char_wb", ngram_range=(3, 3), vocabulary=vocabulary)

    @staticmethod
    def _weigh(counts: Any) -> tuple[Any, npt.NDArray[np.float64]]:
        from sklearn.feature_extraction.text import TfidfTransformer  # noqa: PLC0415 - see there

        transformer = TfidfTransformer().fit(counts)
        return transformer.transform(counts, copy=False), transformer.idf_

    @staticmethod
    def _query(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return weights / np.linalg.norm(weights)
