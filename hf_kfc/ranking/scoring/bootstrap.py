"""Intervals by drawing documents, as the mentions of one document are not independent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bootstrap", "Estimate"]

_CHUNK = 50  # resamples at a time, for the memory's sake


class Estimate(NamedTuple):
    """A share, and its 95 % interval.

    Args:
        value: None where nothing is counted.
        low: Lower end of the interval.
        high: Upper end.
        mentions: Of how many.
    """

    value: float | None
    low: float | None
    high: float | None
    mentions: int

    @property
    def interval(self) -> str:
        """The ends of the interval in words."""
        return "-" if self.low is None else f"{self.low:.1%} to {self.high:.1%}"

    def __str__(self) -> str:
        return "-" if self.value is None else f"{self.value:.1%}"


class Bootstrap:
    """Draws documents again and again, each time as many as there are.

    Args:
        documents: The document of each mention.
        resamples: How often.
        seed: Of the random numbers: the same documents are drawn for all that is asked.
    """

    def __init__(self, documents: Sequence[str], resamples: int, seed: int) -> None:
        number = {name: index for index, name in enumerate(dict.fromkeys(documents))}
        self._documents = np.array([number[name] for name in documents])
        self._count, self._resamples, self._seed = len(number), resamples, seed

    def sums(self, columns: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Add up what is counted of each mention.

        Args:
            columns: ``[mentions, columns]``.

        Returns:
            The sums ``[columns]``, and those of each resample ``[resamples, columns]``.
        """
        own = np.zeros((self._count, columns.shape[1]))
        np.add.at(own, self._documents, columns)
        random, share = np.random.default_rng(self._seed), np.full(self._count, 1 / self._count)
        drawn = [
            random.multinomial(self._count, share, min(_CHUNK, self._resamples - start)) @ own
            for start in range(0, self._resamples, _CHUNK)
        ]
        return own.sum(0), np.concatenate(drawn)

    def shares(
        self, counted: Mapping[str, tuple[NDArray[Any], NDArray[Any]]]
    ) -> dict[str, Estimate]:
        """Estimate shares, with the percentiles of their resamples.

        Args:
            counted: By name, what each mention adds to the numerator and to the denominator.
        """
        if not counted:
            return {}
        sums, drawn = self.sums(np.stack([own for pair in counted.values() for own in pair], 1))
        found = {}
        for index, name in enumerate(counted):
            (top, bottom), (tops, bottoms) = (
                own[..., 2 * index : 2 * index + 2].T for own in (sums, drawn)
            )
            some = bottoms > 0
            if bottom:
                low, high = np.quantile(tops[some] / bottoms[some], [0.025, 0.975])
                found[name] = Estimate(float(top / bottom), float(low), float(high), int(bottom))
            else:
                found[name] = Estimate(None, None, None, 0)
        return found
