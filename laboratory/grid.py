"""A grid over methods, damping, strengths and seeds on one pair of tasks; goes on where it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from tqdm.auto import tqdm

from hf_kfc.curvature import CurvatureArguments
from hf_kfc.errors import ConsolidationError
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.ranking import CandidateCollator, cf_reduction, relative_change

from .arguments import (
    DataArguments,
    LearningArguments,
    RankerArguments,
    refuse_set,
    settings_of,
)
from .data import TaskData
from .ledger import Ledger, read_ledger
from .methods import Method
from .processes import check_processes, process_state
from .results import Outcome, choose_strength
from .tiers import Learned, learn, make_prior, prepare

__all__ = ["GridArguments", "grid_table", "run_grid"]

_MULTIPLES = {
    "l2": (1e-4, 1e-3, 1e-2, 1e-1),  # λ itself: without data there is no Bayesian value
    "ewc": (100.0, 1e3, 1e4, 1e5),
    "kfc": (1.0, 3.0, 10.0, 30.0, 100.0),
    "ekfac": (1.0, 3.0, 10.0, 30.0, 100.0),
}


@dataclass
class GridArguments:
    """Which pair of tasks, which methods, and where the results go."""

    old_task: str = field(metadata={"help": "Task to learn first."})
    task: str = field(metadata={"help": "Task to learn next."})
    results: str = field(
        metadata={"help": "JSON-lines file of runs; a grid that was stopped goes on from it."}
    )
    methods: list[str] = field(
        default_factory=lambda: ["l2", "ewc", "kfc", "ekfac"],
        metadata={"help": "Methods beside none: l2, ewc, kfc, ekfac."},
    )
    dampings: list[float] = field(
        default_factory=lambda: [0.0, 0.1], metadata={"help": "Relative dampings."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1, 2],
        metadata={
            "help": "Seeds of data, weights and order; strengths are chosen on the development "
            "splits of the first and kept for the others."
        },
    )
    multiples: list[float] | None = field(
        default=None,
        metadata={
            "help": "Strengths to try, as multiples of the Bayesian value N_old / (2 N_new) "
            "(default: 100 to 1e5 for ewc, 1 to 100 for kfc and ekfac; l2 has its own)."
        },
    )
    old_train_examples: int | None = field(
        default=None,
        metadata={"help": "Training examples of the old task (default: --train_examples)."},
    )

    def __post_init__(self) -> None:
        for method in self.methods:
            if method not in _MULTIPLES:
                raise ConsolidationError(
                    f"unknown method '{method}'; choose from {', '.join(_MULTIPLES)}"
                )
        for damping in self.dampings:
            if not (isfinite(damping) and damping >= 0):
                raise ConsolidationError(f"dampings: {damping} is not a number ≥ 0; correct it")
        for name in ("methods", "dampings", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConsolidationError(f"{name} are {values}; give at least one, and none twice")


@dataclass(frozen=True)
class _Point:
    """One run: a seed, a method, its strength and damping."""

    seed: int
    method: str
    damping: float | None = None
    multiple: float | None = None


def run_grid(
    grid: GridArguments,
    ranker: RankerArguments,
    data: DataArguments,
    learning: LearningArguments,
    curvature: CurvatureArguments,
) -> None:
    """Run what is missing of a grid, then print its table and write it beside the results.

    Args:
        grid: The pair, the methods and the results file.
        ranker: The model to begin from.
        data: The examples.
        learning: How to train; strengths, damping and seed are the grid's to set.
        curvature: How priors are estimated.

    Raises:
        HfKfcError: Something in the input is missing or wrong.
    """
    check_processes()
    own = ("strengths", "damping", "seed")
    refuse_set(learning, own, "--multiples, --dampings and --seeds")
    settings = settings_of(grid, ranker, data, learning, curvature)
    del settings["GridArguments"]["results"]  # the file may be moved
    state = process_state()
    runs = Ledger(Path(grid.results), settings, _Point)
    with tqdm(desc="grid", unit="run", total=_size(grid), disable=not state.is_main_process) as bar:
        bar.update(len(runs.records))
        for seed in grid.seeds:
            points = list(_points(grid, seed, runs.records))
            if all(point in runs.records for point in points):
                continue
            stage = _Stage(grid, ranker, data, replace(learning, seed=seed), curvature)
            for point in points:
                if point not in runs.records:
                    runs.add(point, stage.run(point))
                    bar.update()
    if state.is_main_process:
        table = grid_table(Path(grid.results))
        Path(grid.results).with_suffix(".md").write_text(table + "\n", encoding="utf-8")
        print(f"\n{table}")  # noqa: T201


def _size(grid: GridArguments) -> int:
    first = sum(len(_multiples(grid, m)) * len(_dampings(grid, m)) for m in grid.methods)
    later = sum(len(_dampings(grid, m)) for m in grid.methods)
    return 1 + first + (len(grid.seeds) - 1) * (1 + later)


def _dampings(grid: GridArguments, method: str) -> Sequence[float]:
    # Damping an identity only rescales it: the grid over strengths covers that.
    return [0.0] if method == "l2" else grid.dampings


def _multiples(grid: GridArguments, method: str) -> Sequence[float]:
    return _MULTIPLES[method] if method == "l2" or not grid.multiples else grid.multiples


def _points(grid: GridArguments, seed: int, records: Mapping[_Point, Any]) -> Iterator[_Point]:
    """All strengths for the first seed, the chosen one for the others."""
    yield _Point(seed, "none")
    for method in grid.methods:
        for damping in _dampings(grid, method):
            if seed == grid.seeds[0]:
                multiples = _multiples(grid, method)
            else:
                multiples = [_chosen(records, grid.seeds[0], method, damping)]
            for multiple in multiples:
                yield _Point(seed, method, damping, multiple)


def _chosen(records: Mapping[_Point, Any], seed: int, method: str, damping: float) -> float:
    """Choose the strength (as a multiple) on the development splits of one seed."""
    outcomes = [
        Outcome(
            method, [point.multiple], damping, record["old_validation"], record["new_validation"]
        )
        for point, record in records.items()
        if (point.seed, point.method, point.damping) == (seed, method, damping)
        and point.multiple is not None
    ]
    plain = records[_Point(seed, "none")]
    best = choose_strength(
        outcomes,
        Outcome("none", [], None, plain["old_validation"], plain["new_validation"]),
    )
    return best.strengths[0]


class _Stage:
    """Tier 1 of one seed, and the priors of it that have been needed."""

    def __init__(
        self,
        grid: GridArguments,
        ranker: RankerArguments,
        data: DataArguments,
        learning: LearningArguments,
        curvature: CurvatureArguments,
    ) -> None:
        self.learning, self.curvature = learning, curvature
        old_examples = grid.old_train_examples
        old_data = data if old_examples is None else replace(data, train_examples=old_examples)
        start, tokenizer, (old, new) = prepare(
            ranker, learning.seed, [(grid.old_task, old_data), (grid.task, data)], curvature
        )
        self.collator = CandidateCollator(tokenizer)
        self.old: TaskData = old
        self.new: TaskData = new
        self.first = learn(start, old, self.collator, learning)
        self.before = self._accuracies(self.first, "old", old)
        if not self.before["old_test"]:
            raise ConsolidationError(
                f"with seed {learning.seed} tier 1 ranks no test example of {old.name} right, so "
                "nothing can be forgotten; train longer or on more examples"
            )
        self.priors: dict[str, ConsolidationPrior] = {}

    def run(self, point: _Point) -> dict[str, Any]:
        """Learn the new task and measure both."""
        learning, priors = self.learning, []
        if point.method != "none":
            prior = self._prior(point.method)
            scale = 1.0
            if point.method != "l2":
                scale = prior.provenance.num_examples / (2 * len(self.new.train))
            assert point.multiple is not None
            assert point.damping is not None
            learning = replace(learning, strengths=[point.multiple * scale], damping=point.damping)
            priors = [prior]
        learned = learn(self.first.model, self.new, self.collator, learning, priors)
        return {
            "strength": learning.strengths[0] if priors and learning.strengths else None,
            "before": self.before,
            **self._accuracies(learned, "old", self.old),
            **self._accuracies(learned, "new", self.new),
        }

    def _prior(self, method: str) -> ConsolidationPrior:
        if method not in self.priors:
            self.priors[method] = make_prior(
                Method.parse(method),
                self.first,
                self.old,
                self.collator,
                self.curvature,
                self.before,
            )
        return self.priors[method]

    def _accuracies(self, learned: Learned, which: str, task: TaskData) -> dict[str, float]:
        return {
            f"{which}_validation": learned.accuracy(task.validation),
            f"{which}_test": learned.accuracy(task.test),
        }


def grid_table(results: Path) -> str:
    """Make the Markdown tables of a grid, on test splits.

    The first has means over seeds ± standard deviations at the chosen strengths, the second every
    strength of the first seed.

    Args:
        results: File that :func:`run_grid` wrote.

    Raises:
        ConsolidationError: It is not such a file, or the grid is not finished.
    """
    header, records = read_ledger(results, _Point)
    grid = GridArguments(**header["settings"]["GridArguments"] | {"results": str(results)})
    try:
        return f"{_table(grid, records)}\n\n{_strength_table(grid, records)}"
    except KeyError as error:
        raise ConsolidationError(
            f"{results} has no run {error.args[0]}; run the grid again, it goes on"
        ) from error


def _table(grid: GridArguments, records: Mapping[_Point, Any]) -> str:
    plain = {seed: records[_Point(seed, "none")] for seed in grid.seeds}
    lines = [
        f"| method | damping | λ / Bayes | {grid.old_task} before | after | change (%) "
        f"| CF reduction (%) | {grid.task} |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        _row("none", "", "", list(plain.values()), list(plain.values())),
    ]
    for method in grid.methods:
        for damping in _dampings(grid, method):
            multiple = _chosen(records, grid.seeds[0], method, damping)
            runs = [records[_Point(seed, method, damping, multiple)] for seed in grid.seeds]
            cells = (
                ("", f"λ = {multiple:g}") if method == "l2" else (f"{damping:g}", f"{multiple:g}")
            )
            lines.append(_row(method, *cells, runs, list(plain.values())))
    return "\n".join(lines)


def _strength_table(grid: GridArguments, records: Mapping[_Point, Any]) -> str:
    """All strengths of the first seed: what the choice on development splits could have been."""
    seed = grid.seeds[0]
    plain = records[_Point(seed, "none")]
    lines = [
        f"First seed, all strengths: CF reduction (%) / points of {grid.task} against none.",
        "",
        "| method | damping | λ / Bayes: CF reduction / new task |",
        "|---|---:|---|",
    ]
    for method in grid.methods:
        for damping in _dampings(grid, method):
            runs = {
                point.multiple: record
                for point, record in records.items()
                if (point.seed, point.method, point.damping) == (seed, method, damping)
                and point.multiple is not None
            }
            cells = [f"{m:g}: {_trade_off(runs[m], plain)}" for m in sorted(runs)]
            shown = "" if method == "l2" else f"{damping:g}"
            lines.append(f"| {method} | {shown} | {', '.join(cells)} |")
    return "\n".join(lines)


def _trade_off(run: dict[str, Any], plain: dict[str, Any]) -> str:
    before = run["before"]["old_test"]
    reduction = cf_reduction(
        relative_change(before, run["old_test"]), relative_change(before, plain["old_test"])
    )
    return f"{100 * reduction:.0f} / {100 * (run['new_test'] - plain['new_test']):+.1f}"


def _row(
    method: str,
    damping: str,
    multiple: str,
    runs: Sequence[dict[str, Any]],
    plain: Sequence[dict[str, Any]],
) -> str:
    changes = [relative_change(r["before"]["old_test"], r["old_test"]) for r in runs]
    without = [relative_change(r["before"]["old_test"], r["old_test"]) for r in plain]
    # Of the mean drops, as in the paper: a ratio per seed is unstable where little is forgotten.
    reduction = (
        "" if method == "none" else f"{100 * cf_reduction(mean(changes), mean(without)):.0f}"
    )
    cells = (
        method,
        damping,
        multiple,
        _spread([100 * r["before"]["old_test"] for r in runs]),
        _spread([100 * r["old_test"] for r in runs]),
        _spread(changes),
        reduction,
        _spread([100 * r["new_test"] for r in runs]),
    )
    return f"| {' | '.join(cells)} |"


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{deviation}"
