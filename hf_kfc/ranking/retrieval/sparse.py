"""What BM25 and TF-IDF have in common: names and queries as sparse vectors, saved and mapped."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Self

import datasets
import numpy as np
import numpy.typing as npt
from tqdm.auto import tqdm
from typing_extensions import override

from ...errors import DataError
from ..ontologies import Ontology
from ..problems import refuse_text
from .base import Hit, Retriever, filled
from .postings import Postings

__all__ = ["SparseRetriever", "count_vectorizer"]

_DESCRIPTION = "index.json"
_VOCABULARY = "vocabulary.json"
_ARRAYS = ("owners", "offsets", "names", "weights", "peaks")


def count_vectorizer(**options: Any) -> Any:
    """Make scikit-learn's counter of features of texts that are normalised already.

    It is imported here and not above: who only trains and ranks need not wait for it.

    Args:
        **options: Those of ``CountVectorizer``.
    """
    from sklearn.feature_extraction.text import CountVectorizer  # noqa: PLC0415

    return CountVectorizer(lowercase=False, dtype=np.float64, **options)


class SparseRetriever(Retriever, ABC):
    """Base class of the retrievers: every name and every query is a sparse vector of features.

    A subclass says how a text is normalised (:meth:`normalised`), what its features are
    (:meth:`_vectorizer`) and what they weigh. Names of one concept that are the same once
    normalised count once.

    Args:
        ontology: The ontology.

    Attributes:
        VERSION: To be raised with every change of what an index holds or finds.

    Raises:
        DataError: No name has a feature.
    """

    VERSION: ClassVar[int]

    def __init__(self, ontology: Ontology) -> None:
        owners = array("i")
        counter = self._vectorizer(None)
        try:
            counts = counter.fit_transform(
                self._names(ontology.names(), ontology.num_names, owners)
            )
        except ValueError as error:
            if owners:
                raise
            raise DataError(
                f"no name of the ontology's {len(ontology)} concept(s) has a letter or a digit; "
                "check the ontology's names"
            ) from error
        features = counter.get_feature_names_out().tolist()
        self._hold(counts, np.frombuffer(owners, np.int32), features, len(ontology))

    def _hold(
        self,
        counts: Any,
        owners: npt.NDArray[np.int32],
        features: Sequence[str],
        num_concepts: int,
    ) -> None:
        """Weigh the counts of features in names [names, features], and turn them around."""
        counts.sort_indices()  # sums then do not depend on which name had a feature first
        small = counts.astype(np.min_scalar_type(int(counts.data.max())))
        self._counts = small.tocsc().data  # in the order of the postings
        del small
        weights, self._feature_weights = self._weigh(counts)
        del counts  # of a large ontology, gigabytes
        self._folder: Path | None = None
        self._num_concepts = num_concepts
        self._postings = Postings.from_matrix(weights, owners)
        self._counter = self._vectorizer(features)

    @override
    def extended(self, ontology: Ontology, changed: Collection[int]) -> Self:
        """Weigh all names anew by the features' counts: one more changes how rare its words are."""
        from scipy.sparse import csc_matrix, csr_matrix, vstack  # noqa: PLC0415 - slow

        fresh = [*sorted(changed), *range(self._num_concepts, len(ontology))]
        pairs = [(position, name) for position in fresh for name in ontology[position].names]
        owners, counter = array("i"), self._vectorizer(None)
        rows, features = [], [list(self._counter.vocabulary)]
        old = self._postings
        shape = (len(old.owners), len(old.peaks))
        kept = ~np.isin(old.owners, list(changed))
        rows.append(csc_matrix((self._counts, old.names, old.offsets), shape).tocsr()[kept])
        with suppress(ValueError):  # no feature in any of the names
            rows.append(counter.fit_transform(self._names(pairs, len(pairs), owners)))
            features.append(counter.get_feature_names_out().tolist())
        everything = sorted(set().union(*features))
        places = {feature: place for place, feature in enumerate(everything)}
        moved = [
            csr_matrix(
                (own.data, np.array([places[f] for f in names])[own.indices], own.indptr),
                (own.shape[0], len(everything)),
            )
            for own, names in zip(rows, features, strict=True)
        ]
        whole = np.concatenate([old.owners[kept], np.frombuffer(owners, np.int32)])
        order = np.argsort(whole, kind="stable")
        counts = vstack(moved, "csr")[order].astype(np.float64)
        used = np.flatnonzero(np.bincount(counts.indices, minlength=len(everything)))
        retriever = type(self).__new__(type(self))
        retriever._hold(counts[:, used], whole[order], [everything[i] for i in used], len(ontology))
        return retriever

    @staticmethod
    @abstractmethod
    def normalised(text: str) -> str:
        """Normalise a name or a query.

        Args:
            text: The text.

        Returns:
            All of it that counts; empty where nothing does.
        """

    @staticmethod
    @abstractmethod
    def _vectorizer(vocabulary: Sequence[str] | None) -> Any:
        """Make what counts the features of normalised texts."""

    @staticmethod
    @abstractmethod
    def _weigh(counts: Any) -> tuple[Any, npt.NDArray[np.float64]]:
        """Weigh the counted features of names: a matrix alike, and a factor for each feature.

        The score of a name is the product of its row with the query's vector (:meth:`_query`).
        """

    @staticmethod
    def _query(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Make a query's vector of its counts times the features' factors."""
        return weights

    def _names(
        self, names: Iterable[tuple[int, str]], total: int, owners: array[int]
    ) -> Iterator[str]:
        """Yield the distinct normalised names; note the concept of each in ``owners``."""
        own: set[str] = set()
        for concept, name in tqdm(
            names,
            desc=f"indexing names ({type(self).__name__})",
            total=total,
            unit=" names",
            disable=datasets.are_progress_bars_disabled(),
        ):
            if not owners or owners[-1] != concept:
                own = set()
            text = self.normalised(name)
            if text and text not in own:
                own.add(text)
                owners.append(concept)
                yield text

    @property
    @override
    def num_names(self) -> int:
        return len(self._postings.owners)

    @override
    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Search once for queries that normalise alike.

        Raises:
            DataError: ``k`` is not positive, the queries are one text, or one of them is none.
        """
        refuse_text("queries", queries)
        if k < 1:
            raise DataError(f"k is {k}; ask for at least 1 concept")
        texts = [self.normalised(_text(query)) for query in queries]
        distinct = list(dict.fromkeys(texts))
        counts = self._counter.transform(distinct)
        # Made at each call, so that threads may share the retriever; memory that is not touched
        # costs nothing.
        sums = np.zeros(self.num_names)
        found = {}
        for text, start, end in zip(distinct, counts.indptr, counts.indptr[1:], strict=False):
            features = counts.indices[start:end]
            hits = []
            if len(features):
                weights = self._query(counts.data[start:end] * self._feature_weights[features])
                concepts, scores = self._postings.best(features, weights, k, sums)
                hits = [Hit(*pair) for pair in zip(concepts.tolist(), scores.tolist(), strict=True)]
            found[text] = filled(self._num_concepts, text, k, hits)
        return [list(found[text]) for text in texts]

    def save(self, folder: str | Path) -> None:
        """Write the index into a folder.

        Args:
            folder: An existing folder.
        """
        folder = Path(folder)
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self._postings, name))
        np.save(folder / "counts.npy", self._counts)
        np.save(folder / "feature_weights.npy", self._feature_weights)
        vocabulary = json.dumps(self._counter.vocabulary)
        (folder / _VOCABULARY).write_text(vocabulary, encoding="utf-8")
        description = {
            "retriever": type(self).__name__,
            "version": self.VERSION,
            "num_concepts": self._num_concepts,
            "sha256": {path.name: _sha256(path) for path in sorted(folder.iterdir())},
        }
        (folder / _DESCRIPTION).write_text(json.dumps(description, indent=2), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> SparseRetriever:
        """Map an index that :meth:`save` wrote into memory.

        Args:
            folder: The folder.

        Raises:
            DataError: A file is missing or damaged, or is of another retriever or version.
        """
        retriever = cls.__new__(cls)
        retriever.__setstate__(Path(folder))
        return retriever

    def __getstate__(self) -> Any:
        # A worker maps the same files instead of copying them.
        return self._folder or self.__dict__

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)
            return
        try:
            description = json.loads((state / _DESCRIPTION).read_text(encoding="utf-8"))
            kind = description["retriever"], description["version"]
            if kind != (type(self).__name__, self.VERSION):
                raise ValueError(f"it is of {kind[0]}, version {kind[1]}")
            for name, digest in description["sha256"].items():
                if _sha256(state / name) != digest:
                    raise ValueError(f"{name} is damaged")
            vocabulary = json.loads((state / _VOCABULARY).read_text(encoding="utf-8"))
            # Plain arrays on the mapped memory: slices of `np.memmap` are slow to make.
            maps = {name: np.load(state / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
            self._postings = Postings(
                **{key: mapped.view(np.ndarray) for key, mapped in maps.items()}
            )
            self._counts = np.load(state / "counts.npy", mmap_mode="r").view(np.ndarray)
            self._feature_weights = np.load(state / "feature_weights.npy")
            self._num_concepts = int(description["num_concepts"])
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{state}: not a saved index ({error}); remove the folder") from error
        self._folder = state
        self._counter = self._vectorizer(vocabulary)


def _text(query: Any) -> str:
    """Refuse what is no text, or half a character, of which no tokenizer makes anything either."""
    try:
        query.encode()
    except (AttributeError, UnicodeError):
        raise DataError(f"query {query!r:.80} is no text; leave it out or correct it") from None
    found: str = query
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
