"""BM25 over words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from unicodedata import category

import numpy as np
import numpy.typing as npt

from .base import folded
from .sparse import SparseRetriever, count_vectorizer

__all__ = ["Bm25Retriever"]

# A word goes on over marks, which \w does not know: vowels of Hindi and Thai are such.
_MARKS = "".join(chr(c) for c in range(0x300, 0x1F000) if category(chr(c)).startswith("M"))
_WORD = re.compile(rf"(?:[^\W_]|[{_MARKS}\u200c\u200d])+")
_ASCII_WORD = re.compile(r"[^\W_]+")  # the same where there are none, in half the time
_K1, _B, _EPSILON = 1.5, 0.75, 0.25
_MIN_IDF = 1e-7


class Bm25Retriever(SparseRetriever):
    """BM25 (Okapi, with the formula and the constants of ``rank_bm25``) over every name.

    A name is a document of lower-cased alphanumeric words without accents, and a concept scores
    as its best name. Names of one concept with the same words in the same order count once.

    A match never ranks below a non-match: names that share no word with the query are not
    scored, and the idf of a word has a small positive floor. In a tiny vocabulary Okapi's idf can
    be zero or negative, and a second matching word would then lower a score.

    Args:
        ontology: The ontology.

    Raises:
        DataError: No name has a letter or a digit.
    """

    VERSION = 5

    @staticmethod
    def normalised(text: str) -> str:
        """Fold case and marks, and keep the words."""
        text = folded(text)
        return " ".join((_ASCII_WORD if text.isascii() else _WORD).findall(text))

    @staticmethod
    def _vectorizer(vocabulary: Sequence[str] | None) -> Any:
        return count_vectorizer(analyzer=str.split, vocabulary=vocabulary)

    @staticmethod
    def _weigh(counts: Any) -> tuple[Any, npt.NDArray[np.float64]]:
        num_names, num_words = counts.shape
        lengths = np.asarray(counts.sum(axis=1)).ravel()  # [names]
        names_with = np.bincount(counts.indices, minlength=num_words)  # [words]
        idf = np.log(num_names - names_with + 0.5) - np.log(names_with + 0.5)
        idf[idf < 0] = _EPSILON * idf.mean()
        damping = _K1 * (1 - _B + _B * lengths / lengths.mean())  # [names]
        counts.data *= (_K1 + 1) / (counts.data + np.repeat(damping, np.diff(counts.indptr)))
        return counts, np.maximum(idf, _MIN_IDF)
