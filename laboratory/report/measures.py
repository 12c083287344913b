"""Forgetting and learning over all permutations: what the report's numbers mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import permutations

import pandas as pd

from .frame import arrow, reduction
from .groups import in_order
from .models import Model

__all__ = ["Measures", "Summary", "tiers_of"]


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


class Measures:
    """Changes, CF reductions and points of one model at one tier, on test splits.

    Args:
        model: Its runs.
        tier: Tasks in a chain, 2 or 3.
    """

    def __init__(self, model: Model, tier: int) -> None:
        self.model, self.tier = model, tier
        self.methods = in_order(model.methods(tier))
        """The methods that were run at this tier, group by group."""
        self.chains = [arrow(tasks) for tasks in permutations(model.tasks, tier)]
        self.all_runs = model.frame[model.frame.tier == tier]
        self.change = self._table("change")
        """In percent, by chain and seed, a column for each method; ``individual`` changes none."""
        self.new = self._table("new")
        """Accuracy on the new task likewise."""
        later = "individual:update" if model.has_updates else "individual"
        own = model.frame[model.frame.method == later]
        alone = dict(zip(zip(own.new_task, own.seed, strict=True), own.new, strict=True))
        self.new["individual"] = [
            alone.get((chain.split(" → ")[-1], seed), math.nan) for chain, seed in self.new.index
        ]
        self.change["individual"] = 0.0

    def _table(self, value: str) -> pd.DataFrame:
        """A value of the runs with the chosen strengths."""
        own = self.all_runs[self.all_runs.chosen]
        runs = dict(zip(zip(own.method, own.chain, own.seed, strict=True), own[value], strict=True))
        index = pd.MultiIndex.from_product([self.chains, self.model.seeds], names=["chain", "seed"])
        found = {
            name: [runs.get((name, *at), math.nan) for at in index]
            for name in dict.fromkeys([*self.methods, "combined", "none"])
        }
        return pd.DataFrame(found, index, dtype=float)

    def reduction(self, method: str, chain: str | None = None) -> float:
        """Return the CF reduction in percent, a ratio of means; of one permutation or all.

        Only runs that no method has too are held against it, so that both means are of the same.

        Args:
            method: A method or baseline.
            chain: One of the permutations.
        """
        pairs = self._pairs(method, chain)
        return reduction(pairs.own.mean(), pairs.none.mean())

    def summary(self, method: str) -> Summary:
        """Return what a method does on all permutations.

        Args:
            method: A method or baseline.
        """
        by_chain = pd.Series([self.reduction(method, chain) for chain in self.chains])
        gains = self.new[method] - self.new["none"]
        has = self.new[method].notna()
        return Summary(
            method,
            self._pairs(method).own.mean(),
            self.reduction(method),
            by_chain.mean(),
            int(by_chain.count()),
            gains.mean(),
            gains.sem(),
            int(has.sum()),
            len(has),
            bool(has.groupby("chain").any().all()),
        )

    def differences(self, method: str, other: str) -> pd.Series:
        """Return by how much less the old tasks change than by another method, run by run.

        Args:
            method: A method.
            other: The other.
        """
        return self.change[method] - self.change[other]

    def curve(self, chain: str, method: str) -> pd.DataFrame:
        """Return a method at every strength that was tried; empty without a run of no method.

        Args:
            chain: One of the permutations.
            method: The method.

        Returns:
            Rows with ``strength``, ``points`` above no method, ``change`` and ``chosen``.
        """
        seed = self.model.seeds[0]
        runs = self.tried(chain, method)
        runs = runs.assign(points=runs.new - self.new["none"][chain, seed])
        return runs.dropna(subset="points")

    def tried(self, chain: str, method: str) -> pd.DataFrame:
        """Return the runs of a method on the first seed, the least strength first.

        Args:
            chain: One of the permutations.
            method: The method.
        """
        runs = self.all_runs
        own = (runs.chain == chain) & (runs.method == method) & (runs.seed == self.model.seeds[0])
        return runs[own].sort_values("strength")

    def missing(self) -> dict[str, int]:
        """Return how many runs each method lacks; of a search, also the strengths it lacks."""
        counts = {}
        for method in self.methods:
            tried = [len(self.tried(chain, method)) for chain in self.chains]
            first = sum(max(tried) - count for count in tried)
            has = self.new[method].notna()
            later = int((~has[has.index.get_level_values("seed") != self.model.seeds[0]]).sum())
            # All of a method may be of later seeds, if the first was lost.
            counts[method] = (first or (0 if max(tried) else len(self.chains))) + later
        return {method: count for method, count in counts.items() if count}

    def nothing_to_forget(self) -> int:
        """Return how many runs have an old task that the model alone did not learn at all."""
        own = self.methods
        return int((self.new[own].notna() & self.change[own].isna()).to_numpy().sum())

    def _pairs(self, method: str, chain: str | None = None) -> pd.DataFrame:
        """Changes by a method and by none, of the runs that have both."""
        pairs = pd.DataFrame({"own": self.change[method], "none": self.change["none"]})
        return (pairs if chain is None else pairs.loc[[chain]]).dropna()


def tiers_of(model: Model) -> list[Measures]:
    """Return what was measured at tiers 2 and 3, where methods were run.

    Args:
        model: The runs.
    """
    return [Measures(model, tier) for tier in (2, 3) if model.methods(tier)]
