"""An inverted index of names by their words or trigrams, and an exact search for the best ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Postings"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer[Any]]

_DIGITS = 9
# Names are passed over only where they are worse by more than rounding can make good.
_SLACK = 2 * 10.0**-_DIGITS
_FIRST_POSTINGS = 100_000  # how many are read before the first look at what can be passed over
_GROWTH = 3
_SAMPLE = 1_000  # postings that tell how high about the best scores are


@dataclass(frozen=True, eq=False)
class Postings:
    """For each feature (a word, a trigram) the names that have it, and its weight in each.

    Args:
        owners: Of each name its concept; names stand in the order of their concepts.
        offsets: Where the postings of each feature begin, and where those of the last one end.
        names: The names of each feature's postings, ascending.
        weights: The weight of the feature in the name, above 0, for each posting.
        peaks: The highest weight of each feature.
    """

    owners: npt.NDArray[np.int32]  # [names]
    offsets: Ints  # [features + 1]
    names: npt.NDArray[np.int32]  # [postings]
    weights: Floats  # [postings]
    peaks: Floats  # [features]

    @classmethod
    def from_matrix(cls, weights: Any, owners: npt.NDArray[np.int32]) -> Postings:
        """Turn a matrix around.

        Args:
            weights: Weights of the names' features, a sparse matrix ``[names, features]`` with no
                empty column.
            owners: Of each name its concept.
        """
        columns = weights.tocsc()
        peaks = np.maximum.reduceat(columns.data, columns.indptr[:-1])
        return cls(owners, columns.indptr, columns.indices, columns.data, peaks)

    def best(self, features: Ints, weights: Floats, k: int, sums: Floats) -> tuple[Ints, Floats]:
        """Find the best concepts for a query.

        The score of a name is the sum, over the query's features that it has, of the weight in the
        query times the weight in the name; a concept scores as its best name. Features are read
        from the one that can add most, usually the rarest, to the one that can add least. As soon
        as those still unread cannot lift a name that has none of the others into the result, they
        are looked up for the names that can still get there and are not read (MaxScore, Turtle &
        Flood 1995). What is left out cannot have changed the result.

        Args:
            features: The query's features, each once.
            weights: The weight of each in the query, above 0.
            k: How many concepts to find.
            sums: Room to work in: zeros, one for each name, and zeros again afterwards.

        Returns:
            At most ``k`` concepts and their scores, rounded to 9 digits and above 0: the highest
            score first, equal ones in the concepts' order.
        """
        bounds = weights * self.peaks[features]
        order = np.argsort(-bounds, kind="stable")
        features, weights, bounds = features[order], weights[order], bounds[order]
        unread = np.append(np.cumsum(bounds[:0:-1])[::-1], 0.0)  # [features]: what later ones add
        sizes = np.cumsum(self.offsets[features + 1] - self.offsets[features])
        read, stop, lists = 0, 0, []
        while stop < len(features):
            target = _GROWTH * sizes[stop - 1] if stop else _FIRST_POSTINGS
            stop = max(stop + 1, int(np.searchsorted(sizes, target, side="right")))
            for feature, weight in zip(features[read:stop], weights[read:stop], strict=True):
                part = slice(self.offsets[feature], self.offsets[feature + 1])
                lists.append(self.names[part])
                np.add.at(sums, lists[-1], weight * self.weights[part])
            read = stop
            # A name comes with each of its features; where it pays, all sums are gone through
            # instead, which a query of rare words need not do.
            dense = sizes[stop - 1] > len(sums) // 20
            few = lists[: 1 + int(np.searchsorted(sizes, _SAMPLE))] if dense else lists
            names: Ints = np.concatenate(few)
            concepts, found = self._top(names, sums[names], k, len(few), sums if dense else None)
            needed = found[-1] - _SLACK if len(found) == k else 0.0
            if unread[stop - 1] < needed:
                break
        if stop < len(features):
            # More than nothing: ``unread`` is less than ``needed``.
            least = needed - unread[stop - 1]
            names = (
                np.flatnonzero(sums >= least) if dense else np.unique(names[sums[names] >= least])
            )
            scores = sums[names]
            for feature, weight in zip(features[stop:], weights[stop:], strict=True):
                scores += weight * self._weights_in(feature, names)
            concepts, found = self._top(names, scores, k)
        if dense:
            sums.fill(0.0)
        else:
            for own in lists:
                sums[own] = 0.0
        return concepts, found

    def _weights_in(self, feature: int, names: Ints) -> Floats:
        """Look up the weights of a feature in some names, 0 for a name that has it not."""
        start, end = self.offsets[feature], self.offsets[feature + 1]
        own = self.names[start:end]
        places = np.minimum(np.searchsorted(own, names), len(own) - 1)
        return np.where(own[places] == names, self.weights[start:end][places], 0.0)

    def _top(
        self, names: Ints, scores: Floats, k: int, repeats: int = 1, every: Floats | None = None
    ) -> tuple[Ints, Floats]:
        """Order the best concepts.

        Args:
            names: Names, among which one may come ``repeats`` times.
            scores: Theirs.
            k: How many concepts to find.
            repeats: See ``names``.
            every: The scores of all names, where ``names`` are a sample that tells about how high
                those of the best concepts are; 0 is none.
        """
        size = 2 * k * repeats  # enough, unless the best names are of few concepts
        while True:
            floor = np.partition(scores, -size)[-size] - _SLACK if size < len(scores) else -np.inf
            if every is None:
                chosen = np.flatnonzero(scores >= floor)
                best, own = scores[chosen], names[chosen]
            else:
                own = np.flatnonzero(every >= floor if floor > 0 else every)
                best = every[own]
            # Equal names score equally only up to rounding, which must not decide their order; and
            # a score that rounds to nothing is still one.
            rounded = np.maximum(best.round(_DIGITS), 10.0**-_DIGITS)
            owners = self.owners[own]
            order = np.lexsort((owners, -rounded))
            first: dict[int, int] = {}  # of each concept, where its best name stands
            for place, owner in zip(order.tolist(), owners[order].tolist(), strict=True):
                if len(first) == k:
                    break
                first.setdefault(owner, place)
            if len(first) == k or floor <= 0:
                places = list(first.values())
                return owners[places], rounded[places]
            size *= 8
