"""A grid over methods, damping, strengths and seeds on one pair of tasks.

    accelerate launch -m laboratory grid --old_task bc5cdr --task psytar --data_dir data \\
        --results runs/bc5cdr-psytar.jsonl

Strengths are multiples of the Bayesian value N_old / (2 N_new), chosen on the development splits.
A grid that was stopped goes on where it was. Its table goes beside the results, as .md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

from hf_kfc.errors import ConsolidationError
from hf_kfc.ranking import CandidateCollator

from .engine import Experiment, ExperimentArguments, Material
from .methods import check_methods
from .points import Choices, Point
from .report import grid_table
from .tiers import prepare

__all__ = ["Grid", "GridArguments"]

_MULTIPLES = {
    "l2": (1e-4, 1e-3, 1e-2, 1e-1),  # λ itself: without data there is no Bayesian value
    "ewc": (100.0, 1e3, 1e4, 1e5),
    "kfc": (1.0, 3.0, 10.0, 30.0, 100.0),
    "ekfac": (1.0, 3.0, 10.0, 30.0, 100.0),
}


@dataclass(kw_only=True)
class GridArguments(ExperimentArguments):
    """Which pair of tasks, which methods, and where the results go."""

    old_task: str = field(metadata={"help": "Task to learn first."})
    task: str = field(metadata={"help": "Task to learn next."})
    methods: list[str] = field(
        default_factory=lambda: ["l2", "ewc", "kfc", "ekfac"],
        metadata={"help": "Methods beside none: l2, ewc, kfc, ekfac."},
    )
    dampings: list[float] = field(
        default_factory=lambda: [0.0, 0.1], metadata={"help": "Relative dampings (not of l2)."}
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
        self.refuse_twice("methods", "dampings", "seeds")

    def tried(self, method: str) -> Sequence[float]:
        """Return the strengths to choose from, as multiples."""
        return _MULTIPLES[method] if method == "l2" or not self.multiples else self.multiples

    def names(self, method: str) -> list[str]:
        """Return a method with each damping; that of an identity would only rescale it."""
        return ["l2"] if method == "l2" else [f"{method}:{own:g}" for own in self.dampings]


class Grid(Experiment):
    """Two tasks, one after the other."""

    sets = ("strengths", "damping", "seed")
    instead = "--multiples, --dampings and --seeds"

    def __init__(self, args: GridArguments, *others: Any) -> None:
        self.args, self.tasks = args, (args.old_task, args.task)
        names = ["none", *(name for method in args.methods for name in args.names(method))]
        super().__init__(args, check_methods(names), *others)

    @property
    def settings(self) -> dict[str, Any]:
        """The pair and the sizes; methods and strengths may be added."""
        own = {"tasks": self.tasks, "old_train_examples": self.args.old_train_examples}
        return super().settings | own

    def prepare(self, seed: int) -> Material:
        """Read both tasks; a new CNN has the vocabulary of the old one."""
        old, new, examples = *self.tasks, self.args.old_train_examples
        old_data = self.data if examples is None else replace(self.data, train_examples=examples)
        tasks = [(old, old_data), (new, self.data)]
        start, tokenizer, encoded = prepare(self.ranker, seed, tasks, self.curvature)
        return Material(
            start, CandidateCollator(tokenizer), dict(zip(self.tasks, encoded, strict=True))
        )

    def points(self, seed: int, choices: Choices) -> Iterator[Point]:
        """All strengths for the first seed, the chosen one for the others."""
        first = Point(seed, self.tasks[:1], "individual")
        yield first
        if first in choices.records and not choices.records[first]["test"][self.args.old_task]:
            raise ConsolidationError(
                f"with seed {seed} tier 1 ranks no test example of {self.args.old_task} right, so "
                "nothing can be forgotten; train longer or on more examples"
            )
        yield Point(seed, self.tasks, "none")
        for method in self.args.methods:
            for name in self.args.names(method):
                if seed == self.seeds[0]:
                    for multiple in self.args.tried(method):
                        yield Point(seed, self.tasks, name, (), multiple)
                else:
                    yield replace(choices.chosen(self.tasks, name), seed=seed)

    def finish(self) -> None:
        """Print the table and write it beside the results."""
        table = grid_table(self.results)
        self.results.with_suffix(".md").write_text(table + "\n", encoding="utf-8")
        print(f"\n{table}")  # noqa: T201
