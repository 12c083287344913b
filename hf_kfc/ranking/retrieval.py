"""Candidate retrieval: which concepts of an ontology a mention may refer to."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from rank_bm25 import BM25Okapi

from ..errors import DataError
from .schema import Concept

__all__ = ["RETRIEVERS", "Bm25Retriever", "Hit", "Retriever", "TfidfRetriever"]

_WORD = re.compile(r"[^\W_]+")
_MIN_IDF = 1e-3


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.lower()))


@dataclass(frozen=True, slots=True)
class Hit:
    """A retrieved concept.

    Args:
        concept: The concept.
        score: Score of its best name: positive where it has something in common with the query,
            0.0 for a concept that only fills the list up.
    """

    concept: Concept
    score: float


class Retriever(Protocol):
    """Finds candidate concepts for a mention."""

    @property
    def num_names(self) -> int:
        """How many distinct names are searched."""

    def search(self, query: str, k: int) -> tuple[Hit, ...]:
        """Find the ``k`` best concepts for a mention.

        Where fewer than ``k`` concepts match, pseudo-random other concepts, drawn by a hash of
        the query, fill the list: the result has ``k`` entries whenever the ontology does, and is
        the same in every process.

        Args:
            query: The mention's text.
            k: How many concepts to return.

        Returns:
            At most ``k`` distinct concepts, the highest score first and equal scores in the
            ontology's order; the ones that fill up come last.
        """


class Bm25Retriever:
    """BM25 (Okapi, as ``rank_bm25`` computes it) over every name of every concept.

    A name is a document of lower-cased alphanumeric words, and a concept scores as its best
    name. Names of one concept with the same words count once.

    Two things are done so that a match never ranks below a non-match. Only names that share a
    word with the query are scored; this also spares ``rank_bm25`` its pass over the whole
    vocabulary and leaves the scores as they are. And the idf of a word has a small positive
    floor: in a tiny vocabulary Okapi's idf can be zero or negative, and a second matching word
    would then lower a score.

    Args:
        concepts: The ontology.

    Raises:
        DataError: The ontology is empty, holds an id twice, or has no name with a letter or digit.
    """

    def __init__(self, concepts: Sequence[Concept]) -> None:
        self._concepts = tuple(concepts)
        _check_ids(self._concepts)
        documents: list[tuple[str, ...]] = []
        owners: list[int] = []
        for index, concept in enumerate(self._concepts):
            for words in dict.fromkeys(_words(name) for name in concept.names):
                if words:
                    documents.append(words)
                    owners.append(index)
        if not documents:
            raise DataError(
                f"no name of the ontology's {len(self._concepts)} concept(s) has a letter or a "
                "digit; check the ontology's names"
            )
        self._owners = np.asarray(owners)  # [names] -> index of the concept
        self._bm25 = BM25Okapi(documents)
        self._bm25.idf = {word: max(idf, _MIN_IDF) for word, idf in self._bm25.idf.items()}
        # rank_bm25 turns this list into an array at every query.
        self._bm25.doc_len = np.asarray(self._bm25.doc_len)
        self._names_with: dict[str, list[int]] = {}
        for index, words in enumerate(documents):
            for word in set(words):
                self._names_with.setdefault(word, []).append(index)
        self._cache: dict[tuple[tuple[str, ...], int], tuple[Hit, ...]] = {}

    @property
    def num_names(self) -> int:
        """How many distinct names are searched."""
        return len(self._owners)

    def search(self, query: str, k: int) -> tuple[Hit, ...]:
        """See :meth:`Retriever.search`."""
        words = _words(query)
        if (words, k) not in self._cache:
            self._cache[words, k] = _filled(
                self._concepts, " ".join(words), k, self._match(words, k)
            )
        return self._cache[words, k]

    def _match(self, words: tuple[str, ...], k: int) -> list[Hit]:
        names = sorted({name for word in words for name in self._names_with.get(word, ())})
        if not names:
            return []
        scores = np.asarray(self._bm25.get_batch_scores(words, names))  # [matching names]
        owners, position = np.unique(self._owners[names], return_inverse=True)
        best = np.zeros(len(owners))  # [matching concepts]
        np.maximum.at(best, position, scores)
        order = np.argsort(-best, kind="stable")[:k]
        return [Hit(self._concepts[owners[i]], float(best[i])) for i in order]


class TfidfRetriever:
    """Cosine similarity of character trigrams weighted by TF-IDF, over every name.

    The candidates of Murty et al. 2018 for MedMentions. Misspellings and inflections still match,
    so the candidates are near in spelling and harder to tell apart than BM25's.

    Args:
        concepts: The ontology.

    Raises:
        DataError: The ontology is empty, holds an id twice, or scikit-learn is not installed.
    """

    def __init__(self, concepts: Sequence[Concept]) -> None:
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer  # noqa: PLC0415
        except ImportError:
            raise DataError(
                "TF-IDF candidates need scikit-learn; install it with pip install hf_kfc[corpora]"
            ) from None
        self._concepts = tuple(concepts)
        _check_ids(self._concepts)
        names, owners = [], []
        for index, concept in enumerate(self._concepts):
            for name in dict.fromkeys(name.lower() for name in concept.names):
                names.append(name)
                owners.append(index)
        self._starts = np.flatnonzero(np.diff(owners, prepend=-1))  # [concepts] -> first name
        self._vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 3))
        # By trigram, so that a query touches only the names that share one with it.
        self._names_with = self._vectorizer.fit_transform(names).T.tocsr()
        self._cache: dict[tuple[str, int], tuple[Hit, ...]] = {}

    @property
    def num_names(self) -> int:
        """How many distinct names are searched."""
        return int(self._names_with.shape[1])

    def search(self, query: str, k: int) -> tuple[Hit, ...]:
        """See :meth:`Retriever.search`."""
        query = query.lower()
        if (query, k) not in self._cache:
            row = self._vectorizer.transform([query])
            scores = (row @ self._names_with).toarray()[0]  # [names]
            best = np.maximum.reduceat(scores, self._starts)  # [concepts]
            # Equal names score equally only up to rounding, which must not decide their order.
            best = best.round(9)
            order = np.argsort(-best, kind="stable")[:k]
            hits = [Hit(self._concepts[i], float(best[i])) for i in order if best[i] > 0]
            self._cache[query, k] = _filled(self._concepts, query, k, hits)
        return self._cache[query, k]


RETRIEVERS: dict[str, Callable[[Sequence[Concept]], Retriever]] = {
    "bm25": Bm25Retriever,
    "tfidf": TfidfRetriever,
}
"""Retrievers by the name that a builder's configuration gives them."""


def _filled(
    concepts: Sequence[Concept], query: str, k: int, matches: Sequence[Hit]
) -> tuple[Hit, ...]:
    if len(matches) >= k:
        return tuple(matches)
    taken = {hit.concept.id for hit in matches}
    # At most len(matches) of these k are taken, so that enough of them remain.
    drawn = random.Random(query).sample(concepts, min(len(concepts), k))
    free = [concept for concept in drawn if concept.id not in taken]
    return (*matches, *(Hit(concept, 0.0) for concept in free[: k - len(matches)]))


def _check_ids(concepts: Sequence[Concept]) -> None:
    if not concepts:
        raise DataError("the ontology is empty; give it at least one concept")
    seen: set[str] = set()
    for concept in concepts:
        if concept.id in seen:
            raise DataError(
                f"concept {concept.id!r} is in the ontology twice; merge its entries into one"
            )
        seen.add(concept.id)
