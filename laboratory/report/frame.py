"""Results files as data frames, and what the report's numbers mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, permutations
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from hf_kfc.errors import ConsolidationError
from hf_kfc.ranking import cf_reduction

from ..ledger import read_ledger
from ..points import BASELINES, Choices, Point, Record
from .groups import in_order

__all__ = ["Measures", "Model", "Summary", "arrow", "load_models", "reduction", "runs_frame"]


def arrow(tasks: Sequence[str]) -> str:
    """Return tasks in their order as text; chains go by this name."""
    return " → ".join(tasks)


def reduction(own: float, without: float) -> float:
    """Return the CF reduction in percent; NaN where a change is not known."""
    return math.nan if math.isnan(own + without) else 100 * cf_reduction(own, without)


def runs_frame(records: Mapping[Point, Record], update: bool) -> pd.DataFrame:
    """Return one row for each run, with what it did to old tasks and for the new one.

    NaN stands for what cannot be known, as a run is missing or there was nothing to forget. A run
    of ``combined`` has a row for each order of its tasks.

    Args:
        records: The runs.
        update: Whether tasks after the first are held against ``individual:update``.

    Returns:
        ``seed``, ``chain``, ``tier``, ``new_task``, ``method`` and ``strength``; on test splits
        ``before`` and ``old``, mean accuracies of the old tasks alone and now, ``change``, the mean
        of their relative changes, and ``new``, the accuracy on the new task, all in percent; and
        whether the development splits of the first seed have ``chosen`` the strength.
    """
    later = "individual:update" if update else "individual"
    alone = {(p.seed, p.tasks, p.method): r["test"] for p, r in records.items()}

    def before(seed: int, task: str, place: int) -> float:
        found = alone.get((seed, (task,), later if place else "individual"))
        return math.nan if found is None else float(found[task])

    rows = []
    for point, record in records.items():
        orders = permutations(point.tasks) if point.method == "combined" else [point.tasks]
        for tasks in orders:
            test, old = record["test"], tasks[:-1]
            anchors = [before(point.seed, task, place) for place, task in enumerate(old)]
            changes = [
                100 * (test[task] - own) / own if own else math.nan
                for task, own in zip(old, anchors, strict=True)
            ]
            rows.append(
                {
                    "seed": point.seed,
                    "chain": arrow(tasks),
                    "tier": len(tasks),
                    "new_task": tasks[-1],
                    "method": point.method,
                    "strength": point.strength,
                    "before": 100 * fmean(anchors) if old else math.nan,
                    "old": 100 * fmean(test[task] for task in old) if old else math.nan,
                    "change": fmean(changes) if old else math.nan,  # NaN if one of them is
                    "new": 100 * test[tasks[-1]],
                }
            )
    frame = pd.DataFrame(rows)
    chosen = _chosen(records)
    frame["chosen"] = [
        chosen.get((row.chain, row.method), row.strength) == row.strength
        for row in frame.itertuples()
    ]
    return frame


def _chosen(records: Mapping[Point, Record]) -> dict[tuple[str, str], Any]:
    """The strength of each method and chain with several; None where nothing can be chosen."""
    seed = next(iter(records)).seed
    choices = Choices(records, seed)
    chosen: dict[tuple[str, str], Any] = {}
    for point in records:
        if point.strength and (key := (arrow(point.tasks), point.method)) not in chosen:
            try:
                chosen[key] = choices.chosen(point.tasks, point.method).strength
            except ConsolidationError:
                chosen[key] = None
    return chosen


class Model:
    """All runs of one model, from one results file or several.

    Args:
        settings: What all of its files were made with.
        headers: Of each file its settings and what its runs were made by, by path.
        records: The runs; those of the first seed with every strength that was tried.
        notes: What a reader has to know of how they were put together.
        run_count: Runs in the files, those that several of them hold counted each time.
        seconds: What those took.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        headers: Mapping[Path, Mapping[str, Any]],
        records: Mapping[Point, Record],
        notes: Sequence[str] = (),
        run_count: int = 0,
        seconds: float = 0.0,
    ) -> None:
        self.settings, self.headers, self.records = settings, headers, records
        self.notes, self.run_count, self.seconds = list(notes), run_count, seconds
        self.seeds = list(dict.fromkeys(point.seed for point in records))
        self.tasks: list[str] = list(settings["tasks"])
        self.has_updates = settings.get("update_examples") is not None
        self.frame = runs_frame(records, self.has_updates)

    @property
    def ranker(self) -> str:
        """``cnn``, or where the encoder came from."""
        return str(self.settings["RankerArguments"]["ranker"])

    @property
    def is_cnn(self) -> bool:
        """Whether the model is a new CNN and no pretrained encoder."""
        return self.ranker == "cnn"

    @property
    def label(self) -> str:
        """Its name in tables and pictures."""
        if self.is_cnn:
            return "CNN"
        layers = self.settings["RankerArguments"].get("num_layers")
        name = Path(self.ranker).name
        return f"{name}, {layers} layers" if layers else name

    def methods(self, tier: int) -> list[str]:
        """Return the methods that were run on chains of so many tasks, in the files' order."""
        names = self.frame.method[self.frame.tier == tier].unique()
        return [name for name in names if name not in BASELINES]

    @cached_property
    def tiers(self) -> list[Measures]:
        """What was measured at tiers 2 and 3, where methods were run."""
        return [Measures(self, tier) for tier in (2, 3) if self.methods(tier)]

    def baselines(self, task: str) -> pd.DataFrame:
        """Return the accuracy on a task alone and together, in percent: a row for each seed.

        Args:
            task: The task.
        """
        frame = self.frame
        own = frame[(frame.new_task == task) & frame.method.isin(BASELINES)]
        whole = own.groupby(["method", "tier", "seed"]).new.mean()
        kinds = [(name, 1) for name in BASELINES[:3]]
        kinds += [("combined", 2), ("combined", len(self.tasks))]
        rows = [[whole.get((*kind, seed), math.nan) for kind in kinds] for seed in self.seeds]
        return pd.DataFrame(rows, self.seeds, dtype=float)

    def missing_baselines(self) -> dict[str, int]:
        """Return how many runs each baseline lacks."""
        single = [(task,) for task in self.tasks]
        several = [
            own
            for count in range(2, len(self.tasks) + 1)
            for own in combinations(self.tasks, count)
        ]
        counts = {
            name: sum(
                Point(seed, own, name) not in self.records
                for own in (several if name == "combined" else single)
                for seed in self.seeds
            )
            for name in BASELINES
            if name != "individual:update" or self.has_updates
        }
        return {name: count for name, count in counts.items() if count}


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


def load_models(paths: Sequence[Path]) -> list[Model]:
    """Read results files and put together those of one model.

    A run that several files hold, such as a task alone, is taken from the first of them.

    Args:
        paths: Files of the experiment over all permutations.

    Returns:
        One for each ranker, the CNN first.

    Raises:
        ConsolidationError: A file is missing or broken, or two files of one ranker were made with
            other settings or chose their strengths on different seeds.
    """
    if not paths:
        raise ConsolidationError("there are no results to report; give at least one file")
    files: dict[str, dict[Path, Any]] = {}
    for path in dict.fromkeys(paths):
        header, records = read_ledger(path)
        if not records:
            raise ConsolidationError(f"{path} holds no run; leave it out or run the experiment")
        settings = header["settings"]
        missing = [name for name in ("RankerArguments", "tasks") if name not in settings]
        if missing or "old_train_examples" in settings:
            raise ConsolidationError(
                f"{path} is of another experiment than that over permutations; leave it out"
            )
        files.setdefault(settings["RankerArguments"]["ranker"], {})[path] = (header, records)
    models = [_merged(own) for own in files.values()]
    return sorted(models, key=lambda model: not model.is_cnn)


def _merged(files: Mapping[Path, Any]) -> Model:
    (first, (header, records)), *others = files.items()
    merged, twice, unequal = dict(records), 0, 0
    seed = next(iter(records)).seed
    for path, (other, more) in others:
        _check_alike(first, header["settings"], path, other["settings"])
        if (own := next(iter(more)).seed) != seed:
            raise ConsolidationError(
                f"{first} chose its strengths on seed {seed} and {path} on seed {own}; give files "
                "with one first seed"
            )
        both = [point for point in more if point in merged]
        twice += len(both)
        unequal += sum(
            any(more[point][split] != merged[point][split] for split in ("validation", "test"))
            for point in both
        )
        merged |= {point: record for point, record in more.items() if point not in merged}
    notes = []
    if twice:
        differ = f"; {unequal} of them differ in their accuracies" if unequal else ", all alike"
        notes.append(f"{twice} runs stand in several files and are taken from the first{differ}.")
    every = [record for _, runs in files.values() for record in runs.values()]
    return Model(
        header["settings"],
        {path: own for path, (own, _) in files.items()},
        # The first seed first, and the seeds in their order, whichever file they came from.
        dict(sorted(merged.items(), key=lambda item: (item[0].seed != seed, item[0].seed))),
        notes,
        len(every),
        sum(record.get("seconds", 0.0) for record in every),
    )


def _check_alike(
    first: Path, settings: Mapping[str, Any], path: Path, other: Mapping[str, Any]
) -> None:
    different = [
        name for name in dict.fromkeys([*settings, *other]) if settings.get(name) != other.get(name)
    ]
    if different:
        raise ConsolidationError(
            f"{first} and {path} are of one ranker but differ in {' and '.join(different)}; "
            "report them apart"
        )
