"""Forgetting and learning over all permutations: what the report's numbers mean."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from statistics import fmean, stdev

from hf_kfc.ranking import cf_reduction

from ..search import Point
from .groups import in_order
from .loading import Model

__all__ = ["Chain", "CurvePoint", "Measures", "Summary", "mean", "standard_error"]

Chain = tuple[str, ...]


@dataclass(frozen=True)
class Summary:
    """What a method does on all permutations of a tier.

    Args:
        method: Its name.
        change: Mean change of the old tasks in percent.
        reduction: CF reduction in percent, as a ratio of mean changes.
        plain_mean: Mean of the CF reductions of the permutations.
        plain_count: Of how many of them; where nothing is forgotten there is none.
        points: Accuracy on the new task minus that of no method, in points.
        error: Standard error of that, over permutations and seeds.
        runs: Runs that these are of.
        expected: Runs that there should be.
        every_chain: Whether every permutation has a run.
    """

    method: str
    change: float
    reduction: float
    plain_mean: float
    plain_count: int
    points: float
    error: float
    runs: int
    expected: int
    every_chain: bool

    @property
    def complete(self) -> bool:
        """Whether no run is missing."""
        return self.runs == self.expected


@dataclass(frozen=True)
class CurvePoint:
    """A method at one strength, on the test splits of the first seed.

    Args:
        strengths: λ of each prior.
        points: Accuracy on the new task minus that of no method, in points.
        change: Change of the old tasks in percent.
        chosen: Whether the development splits choose it.
    """

    strengths: Sequence[float]
    points: float
    change: float
    chosen: bool


class Measures:
    """Changes, CF reductions and points of one model at one tier, on test splits.

    NaN stands for what cannot be known, as a run is missing or there was nothing to forget.

    Args:
        model: Its runs.
        tier: Tasks in a chain, 2 or 3.
    """

    def __init__(self, model: Model, tier: int) -> None:
        self.model, self.tier = model, tier
        self.chains: list[Chain] = list(permutations(model.tasks, tier))

    @cached_property
    def methods(self) -> list[str]:
        """The methods that were run at this tier, group by group."""
        return in_order(self.model.methods(self.tier))

    def alone(self, task: str, seed: int, later: bool) -> float:
        """Return the accuracy of a task learnt alone.

        Args:
            task: The task.
            seed: The seed.
            later: It is not the first of its chain, so that its chain learns the examples of an
                update of it.
        """
        update = later and self.model.settings.get("update_examples") is not None
        record = self.model.run((task,), "individual:update" if update else "individual", seed)
        return record["test"][task] if record else math.nan

    def change(self, chain: Chain, method: str, seed: int) -> float:
        """Return the mean change of the old tasks of a chain in percent.

        Of ``individual``, it is 0: each task keeps a model of its own.
        """
        if method == "individual":
            return 0.0
        record = self.model.run(chain, method, seed)
        return self._change(chain, record["test"], seed) if record else math.nan

    def new(self, chain: Chain, method: str, seed: int) -> float:
        """Return the accuracy on the new task in percent."""
        if method == "individual":
            return 100 * self.alone(chain[-1], seed, later=True)
        record = self.model.run(chain, method, seed)
        return 100 * record["test"][chain[-1]] if record else math.nan

    def reduction(self, chain: Chain, method: str) -> float:
        """Return the CF reduction on one permutation in percent, a ratio of means over seeds."""
        changes = self._pairs(method, [chain])
        return self._ratio(changes)

    def summary(self, method: str) -> Summary:
        """Return what a method does on all permutations.

        Only runs that no method has too are held against it, so that both means are of the same.
        """
        changes = self._pairs(method, self.chains)
        own = [self.reduction(chain, method) for chain in self.chains]
        gains = self.gains(method)
        runs = {(c, s) for c in self.chains for s in self.model.seeds if self._has(c, method, s)}
        return Summary(
            method,
            mean(change for change, _ in changes),
            self._ratio(changes),
            mean(own),
            sum(not math.isnan(value) for value in own),
            mean(gains),
            standard_error(gains),
            len(runs),
            len(self.chains) * len(self.model.seeds),
            len({chain for chain, _ in runs}) == len(self.chains),
        )

    def gains(self, method: str) -> list[float]:
        """Return the new task's points above no method, of each permutation and seed."""
        return [
            self.new(chain, method, seed) - self.new(chain, "none", seed)
            for chain in self.chains
            for seed in self.model.seeds
        ]

    def differences(self, method: str, other: str) -> list[float]:
        """Return by how much less the old tasks change than by another method, run by run."""
        return [
            self.change(chain, method, seed) - self.change(chain, other, seed)
            for chain in self.chains
            for seed in self.model.seeds
        ]

    def curve(self, chain: Chain, method: str) -> list[CurvePoint]:
        """Return a method at every strength that was tried; empty without a run of no method."""
        seed = self.model.seeds[0]
        base, chosen = self.new(chain, "none", seed), self.model.chosen(chain, method)
        if math.isnan(base):
            return []
        return [
            self._curve_point(point, base, point == chosen) for point in self._tried(chain, method)
        ]

    def missing(self) -> dict[str, int]:
        """Return how many runs each method lacks; of a search, also the strengths it lacks."""
        counts = {}
        for method in self.methods:
            tried = [len(self._tried(chain, method)) for chain in self.chains]
            first = sum(max(tried) - count for count in tried)
            later = sum(
                not self._has(chain, method, seed)
                for chain in self.chains
                for seed in self.model.seeds[1:]
            )
            # All of a method may be of later seeds, if the first was lost.
            counts[method] = (first or (0 if max(tried) else len(self.chains))) + later
        return {method: count for method, count in counts.items() if count}

    def nothing_to_forget(self) -> int:
        """Return how many runs have an old task that the model alone did not learn at all."""
        return sum(
            self._has(chain, method, seed) and math.isnan(self.change(chain, method, seed))
            for method in self.methods
            for chain in self.chains
            for seed in self.model.seeds
        )

    def _tried(self, chain: Chain, method: str) -> list[Point]:
        return self.model.tried(chain, method)

    def _has(self, chain: Chain, method: str, seed: int) -> bool:
        if method == "individual":
            return not math.isnan(self.alone(chain[-1], seed, later=True))
        return self.model.run(chain, method, seed) is not None

    def _curve_point(self, point: Point, base: float, chosen: bool) -> CurvePoint:
        test = self.model.records[point]["test"]
        change = self._change(point.tasks, test, point.seed)
        return CurvePoint(point.strengths, 100 * test[point.tasks[-1]] - base, change, chosen)

    def _change(self, chain: Chain, test: dict[str, float], seed: int) -> float:
        changes = []
        for place, task in enumerate(chain[:-1]):
            before = self.alone(task, seed, later=place > 0)
            changes.append(100 * (test[task] - before) / before if before else math.nan)
        return fmean(changes)  # NaN if one of them is

    def _pairs(self, method: str, chains: Iterable[Chain]) -> list[tuple[float, float]]:
        """Changes by a method and by none, of the runs that have both."""
        pairs = [
            (self.change(chain, method, seed), self.change(chain, "none", seed))
            for chain in chains
            for seed in self.model.seeds
        ]
        return [pair for pair in pairs if not any(map(math.isnan, pair))]

    @staticmethod
    def _ratio(changes: Sequence[tuple[float, float]]) -> float:
        if not changes:
            return math.nan
        own, without = (fmean(values) for values in zip(*changes, strict=True))
        return 100 * cf_reduction(own, without)


def mean(values: Iterable[float]) -> float:
    """Return the mean of what is known; NaN if nothing is."""
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else math.nan


def standard_error(values: Iterable[float]) -> float:
    """Return the standard error of the mean of what is known; NaN of fewer than two."""
    known = [value for value in values if not math.isnan(value)]
    return stdev(known) / math.sqrt(len(known)) if len(known) > 1 else math.nan
