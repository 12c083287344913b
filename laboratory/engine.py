"""The one engine: it runs the points of an experiment that are missing, and keeps their records.

An experiment says which points there are; a method (:mod:`laboratory.methods`), how each is learnt;
the engine has the rest: models and priors that points go on from, baselines, strengths, the ledger.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import Any, cast

from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_kfc.curvature import CurvatureArguments
from hf_kfc.errors import ConsolidationError
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.probes import Probes
from hf_kfc.ranking import CandidateCollator, check_processes
from hf_kfc.training import bayesian_strength

from .arguments import DataArguments, LearningArguments, RankerArguments, refuse_set, settings_of
from .averaging import ScoreAverage
from .data import TaskData
from .ledger import Ledger
from .methods import Method
from .points import ANY_CHOICE, BASELINES, Choices, Point, Record, mean_of_old
from .processes import process_state
from .rehearsal import keep_part
from .tiers import (
    Learned,
    as_learned,
    averaged,
    check_rehearsal,
    forgetting,
    kept_examples,
    learn,
    make_prior,
    make_probes,
)

__all__ = ["Experiment", "ExperimentArguments", "Material", "run"]

METER = "names"
"""The kind of probes on which every run measures what it forgets."""
PROBES_HELD_OUT = 0.2
"""Share of probes that is not trained on, as the Trainer holds it out."""


@dataclass(kw_only=True)
class ExperimentArguments:
    """Where the results of an experiment go, and the seeds that it is repeated with."""

    results: str = field(
        metadata={"help": "JSON-lines file of runs; what was stopped goes on from it."}
    )
    seeds: list[int] = field(
        default_factory=lambda: [0],
        metadata={
            "help": "Seeds of data, weights and order; strengths are chosen on the development "
            "splits of the first and kept for the others."
        },
    )

    def __post_init__(self) -> None:
        self.refuse_twice("seeds")

    def refuse_twice(self, *names: str) -> None:
        """Make sure that lists have something in them, and nothing twice.

        Args:
            names: Of the arguments.

        Raises:
            ConsolidationError: One is not so.
        """
        for name in names:
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConsolidationError(f"{name} are {values}; give at least one, and none twice")


@dataclass(frozen=True)
class Material:
    """What an experiment learns with one seed.

    Args:
        start: The model that has learnt nothing yet.
        collator: Makes batches of encoded examples.
        tasks: What can be learnt, by name.
        measured: What is measured after every run; None for the tasks that it has learnt.
    """

    start: PreTrainedModel
    collator: CandidateCollator
    tasks: Mapping[str, TaskData]
    measured: Mapping[str, TaskData] | None = None


class Experiment(ABC):
    """Which points are run, and on what.

    Args:
        args: Results file, seeds and what else the experiment has.
        methods: The methods, by name.
        ranker: The model to begin from.
        data: The examples.
        learning: How to train.
        curvature: How priors are estimated.
    """

    sets: tuple[str, ...] = ("strengths", "seed")
    """Arguments of learning that the experiment sets itself."""
    instead = "its own strengths and --seeds"
    """What to give in their place."""
    update_examples: int | None = None
    """Training examples of a task that is learnt after the first tier; None for all."""

    def __init__(
        self,
        args: ExperimentArguments,
        methods: Mapping[str, Method],
        ranker: RankerArguments,
        data: DataArguments,
        learning: LearningArguments,
        curvature: CurvatureArguments,
    ) -> None:
        refuse_set(learning, self.sets, self.instead)
        self.results, self.seeds, self.methods = Path(args.results), args.seeds, methods
        self.ranker, self.data = ranker, data
        self.learning, self.curvature = learning, curvature

    @property
    def settings(self) -> dict[str, Any]:
        """What must be the same for runs to stand in one file."""
        return settings_of(self.ranker, self.data, self.learning, self.curvature)

    @abstractmethod
    def prepare(self, seed: int) -> Material:
        """Read the tasks and make the model that is begun from.

        Args:
            seed: Of the examples drawn and of new weights.
        """

    @abstractmethod
    def points(self, seed: int, choices: Choices) -> Iterator[Point]:
        """Yield all points of a seed, each after those that it depends on.

        One method after the other: models of the others do not stay in memory.

        Args:
            seed: The seed.
            choices: Chooses strengths among the runs so far, when it is due.
        """

    def old_accuracy(self, point: Point, record: Record) -> float:
        """Return the development accuracy that a strength is chosen for, besides the new task's.

        Args:
            point: A run.
            record: What it came to.
        """
        return mean_of_old(point, record)

    def finish(self) -> None:  # noqa: B027 - most have nothing to do
        """Do what is to be done by the main process when all points are run."""


def run(experiment: Experiment) -> None:
    """Run what is missing of an experiment.

    Every process must call it.

    Args:
        experiment: What to run; its results file is gone on from.

    Raises:
        HfKfcError: Something in the input is missing or wrong.
    """
    check_processes()
    ledger = Ledger(experiment.results, experiment.settings)
    choices = Choices(ledger.records, experiment.seeds[0], experiment.old_accuracy)
    total = sum(1 for seed in experiment.seeds for _ in experiment.points(seed, ANY_CHOICE))
    with tqdm(
        desc="runs", unit="run", total=total, disable=not process_state().is_main_process
    ) as bar:
        for seed in experiment.seeds:
            stage = Stage(experiment, seed)
            for point in experiment.points(seed, choices):
                if point not in ledger.records:
                    bar.set_postfix_str(str(point))
                    ledger.add(point, stage.run(point))
                bar.update()
    if process_state().is_main_process:
        experiment.finish()


class Stage:
    """The tasks of one seed, read when first needed, and the models that later runs go on from.

    Models of one task, and those of the method at work, stay in memory with their priors. What is
    missing after a stop is learnt again.

    Args:
        experiment: What is run.
        seed: Of data, weights and order.
    """

    def __init__(self, experiment: Experiment, seed: int) -> None:
        self.experiment, self.seed = experiment, seed
        self.learning = replace(experiment.learning, seed=seed)
        self._models: dict[Point, PreTrainedModel] = {}
        self._priors: dict[tuple[Any, ...], ConsolidationPrior] = {}
        self._kept_probes: dict[tuple[Any, ...], Probes] = {}

    @cached_property
    def material(self) -> Material:
        """What is learnt."""
        material = self.experiment.prepare(self.seed)
        for old, new in permutations(material.tasks.values(), 2):
            for method in self.experiment.methods.values():
                check_rehearsal(method, self._shortened(new), [old], self.learning)
        return material

    def run(self, point: Point) -> dict[str, Any]:
        """Learn what a point says, and measure it.

        Args:
            point: The point.
        """
        self._forget_others(point.method)
        for earlier in self._needed(point):  # what has to be learnt again is not this run's time
            self.model(earlier)
        started = time.perf_counter()
        learned = self._ranker(point)
        seconds = time.perf_counter() - started
        tasks = self.material.measured
        if tasks is None:
            tasks = {name: self.material.tasks[name] for name in point.tasks}
        return {
            **{
                split: {
                    name: learned.accuracy(getattr(task, split)) for name, task in tasks.items()
                }
                for split in ("validation", "test")
            },
            "seconds": round(seconds, 1),
            "examples": {
                split: {name: len(getattr(task, split)) for name, task in tasks.items()}
                for split in ("train", "validation", "test")
            },
            "strengths": self.strengths(point),
            "steps": learned.trainer.state.global_step,
            **self._forgetting(point, learned),
        }

    def _forgetting(self, point: Point, learned: Learned) -> dict[str, Any]:
        """Measure on probes of the old tasks what is forgotten, whether or not it is held."""
        tasks = self._learnt(point.tasks)
        if point.method in BASELINES or any(task.names is None for task in tasks[:-1]):
            return {}
        measured = {}
        for at in self._chain(point):
            _, held_out = self._probes(at, METER, tasks[-1]).split(PROBES_HELD_OUT, self.seed)
            found = forgetting(held_out, learned.model, self.material.collator)
            measured[at.tasks[-1]] = dict(
                zip(("forgetting", "changed_decisions"), found, strict=True)
            )
        return {"probes": measured}

    def model(self, at: Point) -> PreTrainedModel:
        """Return the model of a run; learnt again if it is not in memory.

        Args:
            at: The run.
        """
        if at not in self._models:
            self._learn(at)
        return self._models[at]

    def strengths(self, point: Point) -> list[float]:
        """Return the λ of each prior of a run; empty without a penalty.

        Args:
            point: The run.
        """
        if point.multiple is None:
            return list(point.strengths)
        method, chain = self.experiment.methods[point.method], self._chain(point)
        if method.curvature == "identity":
            return [point.multiple for _ in chain]
        new = len(self._learnt(point.tasks)[-1].train)
        return [point.multiple * bayesian_strength(self._prior(at, method), new) for at in chain]

    def _forget_others(self, method: str) -> None:
        def stays(at: Point) -> bool:
            return len(at.tasks) == 1 or at.method == method

        self._models = {at: model for at, model in self._models.items() if stays(at)}
        self._priors = {key: prior for key, prior in self._priors.items() if stays(key[0])}
        self._kept_probes = {key: own for key, own in self._kept_probes.items() if stays(key[0])}

    def _needed(self, point: Point) -> list[Point]:
        """The runs whose models this one builds on."""
        if point.method in BASELINES:
            return []
        return self._alone(point) if self._averages_scores(point) else self._chain(point)

    def _averages_scores(self, point: Point) -> bool:
        method = self.experiment.methods.get(point.method)
        return method is not None and method.average == "scores"

    def _chain(self, point: Point) -> list[Point]:
        """The runs of each earlier tier, the first one first: of the same method, but for that."""
        tiers = range(2, len(point.tasks))
        return [
            Point(point.seed, point.tasks[:1], "individual"),
            *(
                replace(point, tasks=point.tasks[:tier], strengths=point.strengths[: tier - 1])
                for tier in tiers
            ),
        ]

    def _alone(self, point: Point) -> list[Point]:
        """The runs that learnt each task of a chain alone, on what the chain learns of it."""
        later = "individual" if self.experiment.update_examples is None else "individual:update"
        return [
            Point(point.seed, (task,), later if place else "individual")
            for place, task in enumerate(point.tasks)
        ]

    def _ranker(self, point: Point) -> Learned:
        """What ranks after a run: its model, or several."""
        if self._averages_scores(point):
            alone = ScoreAverage([self.model(at) for at in self._alone(point)])
            return self._as_learned(cast(PreTrainedModel, alone))
        if point in self._models:
            return self._as_learned(self._models[point])
        return self._learn(point)

    def _as_learned(self, model: PreTrainedModel) -> Learned:
        return as_learned(model, self.material.collator, self.learning)

    def _learn(self, point: Point) -> Learned:
        if point.method in BASELINES:
            task, collator = self._baseline_task(point), self.material.collator
            learned = learn(self.material.start, task, collator, self.learning)
        else:
            learned = self._learn_next(point, self.experiment.methods[point.method])
        self._models[point] = learned.model
        return learned

    def _learn_next(self, point: Point, method: Method) -> Learned:
        """Go on from the model of the tier before, as the method does."""
        chain, tasks = self._chain(point), self._learnt(point.tasks)
        before = self.model(chain[-1])
        learned = learn(
            before,
            tasks[-1],
            self.material.collator,
            replace(self.learning, strengths=self.strengths(point) or None),
            [self._prior(at, method) for at in chain] if method.curvature else [],
            method=method,
            kept=kept_examples(method, tasks[:-1], self.seed),
            probes=[self._probes(at, method.probes, tasks[-1]) for at in chain]
            if method.probes
            else [],
        )
        if method.average == "parameters":
            tier = len(point.tasks)
            return averaged(before, learned, tier, self.material.collator, self.learning)
        return learned

    def _baseline_task(self, point: Point) -> TaskData:
        """What a baseline learns at once."""
        tasks = [self.material.tasks[name] for name in point.tasks]
        if point.method == "combined":
            return replace(tasks[-1], train=[e for task in tasks for e in task.train])
        _, _, part = point.method.partition(":")
        if part == "update":
            return self._shortened(tasks[-1])
        if part:
            return replace(tasks[-1], train=keep_part(tasks[-1].train, float(part), self.seed))
        return tasks[-1]

    def _learnt(self, names: tuple[str, ...]) -> list[TaskData]:
        """The tasks of a chain, with the training examples that it learns of each."""
        first, *others = (self.material.tasks[name] for name in names)
        return [first, *map(self._shortened, others)]

    def _shortened(self, task: TaskData) -> TaskData:
        """What is learnt of a task after the first tier."""
        return replace(task, train=task.train[: self.experiment.update_examples])

    def _prior(self, at: Point, method: Method) -> ConsolidationPrior:
        """The prior of the newest task of a run, estimated at its model."""
        key = (at, method.curvature, method.data_free, *sorted(method.estimate.items()))
        if key not in self._priors:
            self._priors[key] = make_prior(
                method,
                self._as_learned(self.model(at)),
                self._learnt(at.tasks)[-1],
                self.material.collator,
                self.experiment.curvature,
                {},
            )
        return self._priors[key]

    def _probes(self, at: Point, kind: str, new: TaskData) -> Probes:
        """What the model of a run says of inputs like those of its newest task."""
        key = (at, kind, new.name if kind == "new" else "")
        if key not in self._kept_probes:
            self._kept_probes[key] = make_probes(
                kind,
                self._as_learned(self.model(at)),
                self._learnt(at.tasks)[-1],
                new,
                self.material.collator,
                self.seed,
            )
        return self._kept_probes[key]
