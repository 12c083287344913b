"""Tiers 1 to 3 over all permutations of tasks, every method on the same stage.

    accelerate launch -m laboratory permutations --data_dir data --results runs/cnn.jsonl \\
        --methods none l2 ewc kfc ekfac replay:0.05 rehearsal:0.05+kfc lora --tier3_methods kfc

An experiment that was stopped goes on where it was, and takes further methods and seeds. Tables and
pictures are made of the results by `python -m laboratory report`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from hf_kfc.errors import ConsolidationError
from hf_kfc.ranking import CandidateCollator

from .engine import Experiment, ExperimentArguments, Material
from .methods import Method, check_methods
from .points import BASELINES, Choices, Point, tier3_strengths
from .tiers import prepare

__all__ = ["PermutationArguments", "Permutations"]


@dataclass(kw_only=True)
class PermutationArguments(ExperimentArguments):
    """Which tasks, which methods, and where the results go."""

    tasks: list[str] = field(
        default_factory=lambda: ["medmentions", "codiesp", "psytar"],
        metadata={"help": "Tasks that are learnt one after another, in every order."},
    )
    methods: list[str] = field(
        default_factory=lambda: ["none", "l2", "ewc", "kfc", "ekfac"],
        metadata={
            "help": "Methods at tier 2, as in 'kfc', 'replay:0.05' or 'rehearsal:0.05+kfc'; "
            "none is always run."
        },
    )
    tier3_methods: list[str] = field(
        default_factory=list,
        metadata={"help": "Those of them that go on to tier 3 (default: none of them)."},
    )
    search: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Strengths to search through instead of a method's own, as in 'kfc=0.5,5,50'."
        },
    )
    baselines: list[str] = field(
        default_factory=lambda: list(BASELINES[1:]),
        metadata={
            "help": "What methods are held against beside each task alone: 'individual:0.1', "
            "'individual:update' (what a later tier learns of it) and 'combined'; 'none' for "
            "nothing, as where another file has them.",
            "choices": [*BASELINES[1:], "none"],
        },
    )
    update_examples: int | None = field(
        default=None,
        metadata={
            "help": "Training examples of a task that is learnt at tier 2 or 3 (default: "
            "--train_examples, as at tier 1)."
        },
    )

    def __post_init__(self) -> None:
        if len(self.tasks) < 2 or len(set(self.tasks)) < len(self.tasks):
            raise ConsolidationError(f"tasks are {self.tasks}; give at least two, and none twice")
        self.refuse_twice("seeds")
        if self.update_examples is not None and self.update_examples < 1:
            raise ConsolidationError(f"update_examples is {self.update_examples}; give at least 1")
        # Strengths are chosen against it, so it goes first.
        self.methods = ["none", *(name for name in self.methods if name != "none")]
        check_methods(self.methods, self.search)
        if missing := [name for name in self.tier3_methods if name not in self.methods]:
            raise ConsolidationError(
                f"tier3_methods names {', '.join(missing)}, which methods lacks; add it there"
            )


class Permutations(Experiment):
    """Every task alone, every ordered pair, every ordered triple, and baselines.

    Each tier goes on from the method's own model of the tier before. A new CNN gets the vocabulary
    of all tasks, as a general one would.
    """

    instead = "--search and --seeds"

    def __init__(self, args: PermutationArguments, *others: Any) -> None:
        self.args, self.update_examples = args, args.update_examples
        super().__init__(args, check_methods(args.methods, args.search), *others)

    @property
    def settings(self) -> dict[str, Any]:
        """The tasks and their sizes; methods and seeds may be added."""
        own = {"tasks": self.args.tasks, "update_examples": self.update_examples}
        return super().settings | own

    def prepare(self, seed: int) -> Material:
        """Read the tasks."""
        tasks = [(name, self.data) for name in self.args.tasks]
        start, tokenizer, encoded = prepare(
            self.ranker, seed, tasks, self.curvature, common_vocabulary=True
        )
        named = {task.name: task for task in encoded}
        return Material(start, CandidateCollator(tokenizer), named)

    def points(self, seed: int, choices: Choices) -> Iterator[Point]:
        """Tier 1; each method at tiers 2 and 3; what both are held against."""
        for task in self.args.tasks:
            yield Point(seed, (task,), "individual")
        for method in self.methods.values():
            for tier in (2, 3) if method.name in self._tier3 else (2,):
                for tasks in itertools.permutations(self.args.tasks, tier):
                    yield from self._tried(seed, tasks, method, choices)
        yield from self._baselines(seed)

    @property
    def _tier3(self) -> list[str]:
        names = self.args.tier3_methods
        return names and ["none", *names]

    def _tried(
        self, seed: int, tasks: tuple[str, ...], method: Method, choices: Choices
    ) -> Iterator[Point]:
        """All strengths for the first seed, the chosen one for the others."""
        if len(method.strengths) < 2:  # there is nothing to choose from
            yield Point(seed, tasks, method.name, method.strengths * (len(tasks) - 1))
        elif seed != self.seeds[0]:
            yield replace(choices.chosen(tasks, method.name), seed=seed)
        elif len(tasks) == 2:
            yield from (Point(seed, tasks, method.name, (own,)) for own in method.strengths)
        else:
            yield from tier3_strengths(choices, self.args.tasks, tasks, method.name)

    def _baselines(self, seed: int) -> Iterator[Point]:
        """Tasks alone, on fewer examples, and several at once."""
        asked = set(self.args.baselines)
        for task in self.args.tasks:
            for name in BASELINES[1:3]:
                if name in asked and (name != "individual:update" or self.update_examples):
                    yield Point(seed, (task,), name)
        for count in range(2, len(self.args.tasks) + 1) if "combined" in asked else ():
            for tasks in itertools.combinations(self.args.tasks, count):
                yield Point(seed, tasks, "combined")
