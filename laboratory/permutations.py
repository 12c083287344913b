"""Tiers 1 to 3 over all permutations of tasks, every method on the same stage."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_kfc.curvature import CurvatureArguments
from hf_kfc.errors import ConsolidationError
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.ranking import CandidateCollator

from .arguments import (
    DataArguments,
    LearningArguments,
    RankerArguments,
    refuse_set,
    settings_of,
)
from .averaging import ScoreAverage
from .data import TaskData
from .ledger import Ledger
from .methods import Method, check_methods
from .processes import check_processes, process_state
from .rehearsal import keep_part
from .search import TIER3_FACTORS, Choices, Point, tier3_strengths
from .tiers import (
    Learned,
    as_learned,
    averaged,
    check_rehearsal,
    kept_examples,
    learn,
    make_prior,
    prepare,
)

__all__ = ["PermutationArguments", "run_permutations"]


@dataclass
class PermutationArguments:
    """Which tasks, which methods, and where the results go."""

    results: str = field(
        metadata={"help": "JSON-lines file of runs; what was stopped goes on from it."}
    )
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
    update_examples: int | None = field(
        default=None,
        metadata={
            "help": "Training examples of a task that is learnt at tier 2 or 3 (default: "
            "--train_examples, as at tier 1)."
        },
    )
    seeds: list[int] = field(
        default_factory=lambda: [0, 1],
        metadata={
            "help": "Seeds of data, weights and order; strengths are chosen on the development "
            "splits of the first and kept for the others."
        },
    )

    def __post_init__(self) -> None:
        if len(self.tasks) < 2 or len(set(self.tasks)) < len(self.tasks):
            raise ConsolidationError(f"tasks are {self.tasks}; give at least two, and none twice")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConsolidationError(f"seeds are {self.seeds}; give at least one, and none twice")
        if self.update_examples is not None and self.update_examples < 1:
            raise ConsolidationError(f"update_examples is {self.update_examples}; give at least 1")
        if "none" not in self.methods:
            self.methods = ["none", *self.methods]
        check_methods(self.methods)
        if missing := [name for name in self.tier3_methods if name not in self.methods]:
            raise ConsolidationError(
                f"tier3_methods names {', '.join(missing)}, which methods lacks; add it there"
            )
        if self.tier3_methods and "none" not in self.tier3_methods:
            self.tier3_methods = ["none", *self.tier3_methods]
        self.parsed()

    def parsed(self) -> dict[str, Method]:
        """Return the methods by name, with the strengths to search through."""
        methods = {name: Method.parse(name) for name in self.methods}
        for text in self.search:
            name, _, values = text.partition("=")
            try:
                strengths = tuple(float(value) for value in values.split(","))
            except ValueError:
                strengths = ()
            if not (strengths and all(0 < s < float("inf") for s in strengths)):
                raise ConsolidationError(f"search: '{text}' is not METHOD=λ,λ,...; correct it")
            if name not in methods or not methods[name].strengths:
                raise ConsolidationError(
                    f"search: '{name}' is none of the methods with a penalty; correct it"
                )
            methods[name] = replace(methods[name], strengths=strengths)
        return methods


def run_permutations(
    args: PermutationArguments,
    ranker: RankerArguments,
    data: DataArguments,
    learning: LearningArguments,
    curvature: CurvatureArguments,
) -> None:
    """Run what is missing of the experiment.

    For each seed: every task alone, then each ordered pair by each method, then each ordered
    triple by the methods of tier 3, each from its own model of tier 2. Last come the references:
    tasks on a tenth of their examples, and combined. A new CNN gets the vocabulary of all tasks,
    as a general one would.

    Args:
        args: Tasks, methods and the results file.
        ranker: The model to begin from.
        data: The examples, as many of each task.
        learning: How to train; strengths and seed are the experiment's to set.
        curvature: How priors are estimated.

    Raises:
        HfKfcError: Something in the input is missing or wrong.
    """
    check_processes()
    refuse_set(learning, ("strengths", "seed"), "--search and --seeds")
    settings = settings_of(ranker, data, learning, curvature)
    settings |= {"tasks": args.tasks, "update_examples": args.update_examples}
    ledger = Ledger(Path(args.results), settings, Point)
    bar = tqdm(
        desc="runs", unit="run", total=_size(args), disable=not process_state().is_main_process
    )
    with bar:
        stages = {
            seed: _Stage(args, ranker, data, replace(learning, seed=seed), curvature)
            for seed in args.seeds
        }
        choices = Choices(ledger.records, args.seeds[0])
        chains = ((seed, point) for seed in stages for point in _chains(args, choices, seed))
        references = ((seed, point) for seed in stages for point in _references(args, seed))
        for seed, point in itertools.chain(chains, references):
            if point not in ledger.records:
                bar.set_postfix_str(f"seed {seed}: {' > '.join(point.tasks)}, {point.method}")
                ledger.add(point, stages[seed].run(point))
            bar.update()


def _chains(args: PermutationArguments, choices: Choices, seed: int) -> Iterator[Point]:
    """All runs of tiers 1 to 3; of strengths, those that the runs before them have led to."""
    for task in args.tasks:
        yield Point(seed, (task,), "individual")
    methods, first = args.parsed(), seed == args.seeds[0]
    for length, names in ((2, args.methods), (3, args.tier3_methods)):
        for tasks in itertools.permutations(args.tasks, length):
            for name in names:
                if not methods[name].strengths:
                    yield Point(seed, tasks, name)
                elif not first:
                    yield replace(choices.chosen(tasks, name), seed=seed)
                elif length == 2:
                    yield from (Point(seed, tasks, name, (s,)) for s in methods[name].strengths)
                else:
                    yield from tier3_strengths(choices, args.tasks, tasks, name)


def _references(args: PermutationArguments, seed: int) -> Iterator[Point]:
    """What the chains are held against: tasks alone, on fewer examples, and all at once."""
    for task in args.tasks:
        for reference in _alone(args):
            yield Point(seed, (task,), reference)
    for count in range(2, len(args.tasks) + 1):
        for tasks in itertools.combinations(args.tasks, count):
            yield Point(seed, tasks, "combined")


def _alone(args: PermutationArguments) -> list[str]:
    update = [] if args.update_examples is None else ["individual:update"]
    return ["individual:0.1", *update]


def _size(args: PermutationArguments) -> int:
    methods, count, seeds = args.parsed(), len(args.tasks), len(args.seeds)
    together = sum(math.comb(count, size) for size in range(2, count + 1))
    references = count * (1 + len(_alone(args))) + together
    pairs, chains = math.perm(count, 2), math.perm(count, 3)
    tier2 = sum(len(method.strengths) or 1 for method in methods.values())
    tier3 = sum(len(TIER3_FACTORS) if methods[n].strengths else 1 for n in args.tier3_methods)
    later = pairs * len(methods) + chains * len(args.tier3_methods)
    return seeds * references + pairs * tier2 + chains * tier3 + (seeds - 1) * later


class _Stage:
    """The tasks of one seed, read when first needed, and the models that later runs go on from."""

    def __init__(
        self,
        args: PermutationArguments,
        ranker: RankerArguments,
        data: DataArguments,
        learning: LearningArguments,
        curvature: CurvatureArguments,
    ) -> None:
        self.args, self.ranker, self.data = args, ranker, data
        self.learning, self.curvature = learning, curvature
        self.methods = args.parsed()
        self._models: dict[Point, PreTrainedModel] = {}
        self._priors: dict[tuple[Any, ...], ConsolidationPrior] = {}

    def run(self, point: Point) -> dict[str, Any]:
        """Learn what a run says, and measure the tasks it has learnt."""
        started = time.perf_counter()
        learned = self._learn(point)
        seconds = time.perf_counter() - started
        tasks = [self._tasks[name] for name in point.tasks]
        return {
            "validation": {task.name: learned.accuracy(task.validation) for task in tasks},
            "test": {task.name: learned.accuracy(task.test) for task in tasks},
            "seconds": round(seconds, 1),
        }

    @cached_property
    def _ready(self) -> tuple[PreTrainedModel, CandidateCollator, dict[str, TaskData]]:
        tasks = [(name, self.data) for name in self.args.tasks]
        start, tokenizer, encoded = prepare(
            self.ranker, self.learning.seed, tasks, self.curvature, common_vocabulary=True
        )
        for old, new in itertools.permutations(encoded, 2):
            update = replace(new, train=new.train[: self.args.update_examples])
            for method in self.methods.values():
                check_rehearsal(method, update, [old], self.learning)
        return start, CandidateCollator(tokenizer), {task.name: task for task in encoded}

    @property
    def _start(self) -> PreTrainedModel:
        return self._ready[0]

    @property
    def _collator(self) -> CandidateCollator:
        return self._ready[1]

    @property
    def _tasks(self) -> dict[str, TaskData]:
        return self._ready[2]

    def _learn(self, point: Point) -> Learned:
        new = self._tasks[point.tasks[-1]]
        if point.method == "combined":
            union = [e for name in point.tasks for e in self._tasks[name].train]
            return self._plain(replace(new, train=union))
        if point.method == "individual:0.1":
            return self._plain(replace(new, train=keep_part(new.train, 0.1, point.seed)))
        if point.method == "individual:update":
            learned = self._plain(self._update(new.name))
        elif point.method == "individual":
            learned = self._plain(new)
        else:
            learned = self._tier(point, self.methods[point.method])
        if len(point.tasks) < 3 and isinstance(learned.model, PreTrainedModel):
            self._models[point] = learned.model
        return learned

    def _plain(self, task: TaskData) -> Learned:
        return learn(self._start, task, self._collator, self.learning)

    def _update(self, name: str) -> TaskData:
        """What is learnt of a task after the first tier."""
        task = self._tasks[name]
        return replace(task, train=task.train[: self.args.update_examples])

    def _seen(self, tasks: tuple[str, ...]) -> list[TaskData]:
        """The tasks of a chain, with the training examples that it has learnt of each."""
        return [self._tasks[tasks[0]], *map(self._update, tasks[1:])]

    def _tier(self, point: Point, method: Method) -> Learned:
        if method.average == "scores":
            alone = [self._model(at) for at in self._alone(point)]
            together = cast(PreTrainedModel, ScoreAverage(alone))
            return as_learned(together, self._collator, self.learning)
        before = self._before(point)
        priors = []
        if method.curvature:
            chain = [before] if len(point.tasks) == 2 else [self._before(before), before]
            priors = [self._prior(at, method) for at in chain]
        learned = learn(
            self._model(before),
            self._update(point.tasks[-1]),
            self._collator,
            replace(self.learning, strengths=list(point.strengths) or None),
            priors,
            method=method,
            kept=kept_examples(method, self._seen(point.tasks[:-1]), point.seed),
        )
        if method.average == "parameters":
            earlier, tier = self._model(before), len(point.tasks)
            return averaged(earlier, learned, tier, self._collator, self.learning)
        return learned

    def _alone(self, point: Point) -> list[Point]:
        """The runs that learnt each task of a chain alone, on what the chain learns of it."""
        later = "individual" if self.args.update_examples is None else "individual:update"
        first, *others = point.tasks
        return [
            Point(point.seed, (first,), "individual"),
            *(Point(point.seed, (task,), later) for task in others),
        ]

    def _before(self, point: Point) -> Point:
        """The run whose model this one goes on from: of the same method, one tier earlier."""
        if len(point.tasks) == 2:
            return Point(point.seed, point.tasks[:1], "individual")
        return replace(point, tasks=point.tasks[:-1], strengths=point.strengths[:-1])

    def _model(self, point: Point) -> PreTrainedModel:
        """The model of a run; learnt again if it was learnt before the experiment was stopped."""
        if point not in self._models:
            self._learn(point)
        return self._models[point]

    def _prior(self, at: Point, method: Method) -> ConsolidationPrior:
        """The prior of the newest task of a run, estimated at its model."""
        estimate = (method.curvature, method.data_free, *sorted(method.estimate.items()))
        key = (at, *estimate)
        if key not in self._priors:
            task = self._seen(at.tasks)[-1]
            learned = as_learned(self._model(at), self._collator, self.learning)
            self._priors[key] = make_prior(
                method, learned, task, self._collator, self.curvature, {}
            )
        return self._priors[key]
