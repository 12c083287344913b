"""A stream of periods: a model is updated again and again, each time with the newest data alone.

The protocol of practitioners who retrain every month (Sanders 2021, "Catastrophic Forgetting,
Part 2"; Harang & Sanders 2023, arXiv:2306.10181). A task's documents are cut into periods, in
their order. The base model learns the first ones, every update one more, and after each update
all periods are measured, the future ones too.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from tqdm.auto import tqdm
from transformers import PreTrainedModel, ProgressCallback

from hf_kfc.curvature import CurvatureArguments
from hf_kfc.errors import ConsolidationError
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.ranking import CandidateCollator
from hf_kfc.training import bayesian_strength

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
from .periods import prepare_periods
from .processes import check_processes, process_state
from .results import Outcome, choose_strength
from .tiers import Learned, as_learned, averaged, kept_examples, learn, make_prior

__all__ = [
    "FROZEN",
    "RETRAINED",
    "StreamArguments",
    "StreamPoint",
    "run_stream",
]

FROZEN = "frozen"
"""Reference: the base model as it is."""
RETRAINED = "retrained"
"""Reference: a fresh model that learns all periods so far at once."""

_MULTIPLES: Mapping[str, tuple[float, ...]] = {
    "identity": (1e-4, 1e-3, 1e-2, 1e-1),  # λ itself: without data there is no Bayesian value
    "diagonal": (10.0, 100.0, 1e3, 1e4),
    "kronecker": (1.0, 3.0, 10.0, 30.0),
    "kronecker_eigen": (1.0, 3.0, 10.0, 30.0),
}
"""Strengths to choose from at the first update, as multiples of the Bayesian value."""

_SPLITS = ("train", "validation", "test")


@dataclass
class StreamArguments:
    """Which task is cut into periods, by which methods they are learnt, where the results go."""

    results: str = field(
        metadata={"help": "JSON-lines file of runs; a stream that was stopped goes on from it."}
    )
    task: str = field(
        default="medmentions",
        metadata={
            "help": "Task whose documents are cut into periods, in the order of their identifiers."
        },
    )
    periods: int = field(
        default=6, metadata={"help": "Periods, each of about as many training examples."}
    )
    base_periods: int = field(
        default=2, metadata={"help": "Periods that the base model learns at once, the first ones."}
    )
    methods: list[str] = field(
        default_factory=lambda: [
            "none",
            "lower_lr",
            "l2",
            "ewc",
            "kfc",
            "rehearsal",
            "rehearsal_growing",
            "replay:0.05",
            "rehearsal:0.05+ewc",
            "average",
            "scores",
            "lora",
        ],
        metadata={
            "help": "Methods of updating, as in 'kfc', 'replay:0.05' or 'rehearsal:0.05+kfc'; "
            "none is always run, and the references frozen and retrained."
        },
    )
    seeds: list[int] = field(
        default_factory=lambda: [0],
        metadata={
            "help": "Seeds of data, weights and order; strengths are chosen on the development "
            "splits of the first and kept for the others."
        },
    )

    def __post_init__(self) -> None:
        if not 1 <= self.base_periods < self.periods:
            raise ConsolidationError(
                f"base_periods is {self.base_periods} of {self.periods} periods; give at least 1 "
                "and leave at least one to learn later"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConsolidationError(f"seeds are {self.seeds}; give at least one, and none twice")
        for method in check_methods(self.methods):
            if method.average == "scores" and method.name != "scores":
                raise ConsolidationError(
                    f"method '{method.name}' joins others to scores, whose models forget nothing "
                    "because each learns one period alone; give 'scores' by itself"
                )
        # Strengths are chosen against it, so it goes first.
        self.methods = ["none", *(name for name in self.methods if name != "none")]


@dataclass(frozen=True)
class StreamPoint:
    """One update.

    Args:
        seed: Of data, weights and order.
        period: Number, from 1, of the period that is learnt; of the base model, of its last one.
        method: Name of the method, or ``frozen`` or ``retrained``.
        multiple: Of the Bayesian strength (of l2: λ itself); None for no penalty.
    """

    seed: int
    period: int
    method: str
    multiple: float | None = None


def run_stream(
    args: StreamArguments,
    ranker: RankerArguments,
    data: DataArguments,
    learning: LearningArguments,
    curvature: CurvatureArguments,
) -> None:
    """Run what is missing of the stream.

    For each seed: the base model, the references, then every method's own chain of updates. One
    with a penalty has a prior of the base periods and of each period learnt since, estimated at
    the model that had just learnt it, with λ = multiple · N_i / (2 N_new); the multiple is chosen
    at the first update of the first seed. A new CNN has the vocabulary of the base periods, all
    that could be known then. (The candidates are those of the task's own ontology, at all times.)

    Args:
        args: The task, its periods, the methods and the results file.
        ranker: The model to begin from.
        data: The examples, of all periods together.
        learning: How to train; strengths and seed are the stream's to set.
        curvature: How priors are estimated.

    Raises:
        HfKfcError: Something in the input is missing or wrong.
    """
    check_processes()
    refuse_set(learning, ("strengths", "seed"), "its own strengths and --seeds")
    settings = settings_of(ranker, data, learning, curvature)
    settings |= {name: getattr(args, name) for name in ("task", "periods", "base_periods")}
    settings["first of seeds"] = args.seeds[0]  # whose strengths all have
    ledger = Ledger(Path(args.results), settings, StreamPoint)
    state = process_state()
    with tqdm(desc="updates", total=_size(args), disable=not state.is_main_process) as bar:
        for seed in args.seeds:
            stage = _Stage(args, ranker, data, replace(learning, seed=seed), curvature)
            for point in _points(args, ledger.records, seed):
                if point not in ledger.records:
                    multiple = "" if point.multiple is None else f" {point.multiple:g}"
                    bar.set_postfix_str(
                        f"seed {seed}, period {point.period}, {point.method}{multiple}"
                    )
                    ledger.add(point, stage.run(point))
                bar.update()


def _points(
    args: StreamArguments, records: Mapping[StreamPoint, Any], seed: int
) -> Iterator[StreamPoint]:
    """All updates of a seed, one method after the other; the choice is made when it is due."""
    first = args.base_periods + 1
    for period in range(args.base_periods, args.periods + 1):
        yield StreamPoint(seed, period, FROZEN)
    for period in range(first, args.periods + 1):
        yield StreamPoint(seed, period, RETRAINED)
    for method in check_methods(args.methods):
        multiple = None
        if method.curvature:
            if seed == args.seeds[0]:
                for tried in _MULTIPLES[method.curvature]:
                    yield StreamPoint(seed, first, method.name, tried)
            multiple = _chosen(records, args, method.name)
        for period in range(first, args.periods + 1):
            if (seed, period) != (args.seeds[0], first) or multiple is None:
                yield StreamPoint(seed, period, method.name, multiple)


def _size(args: StreamArguments) -> int:
    updates, methods = args.periods - args.base_periods, check_methods(args.methods)
    tries = sum(len(_MULTIPLES[m.curvature]) - 1 for m in methods if m.curvature)
    return len(args.seeds) * ((len(methods) + 2) * updates + 1) + tries


def _chosen(records: Mapping[StreamPoint, Any], args: StreamArguments, name: str) -> float:
    """Choose a method's multiple on the development splits, at the first update."""
    first = (args.seeds[0], args.base_periods + 1)
    outcomes = [
        _outcome(point, record)
        for point, record in records.items()
        if (point.seed, point.period, point.method) == (*first, name)
    ]
    plain = StreamPoint(*first, "none")
    return choose_strength(outcomes, _outcome(plain, records[plain])).strengths[0]


def _outcome(point: StreamPoint, record: Mapping[str, Any]) -> Outcome:
    """What a first update did, on the development splits, to all that was seen and the new."""
    new = point.period - 1
    accuracies, sizes = record["validation"], record["examples"]["validation"]
    right = sum(a * n for a, n in zip(accuracies[:new], sizes[:new], strict=True))
    strengths = [] if point.multiple is None else [point.multiple]
    return Outcome(point.method, strengths, None, right / sum(sizes[:new]), accuracies[new])


class _Stage:
    """The periods of one seed, read when first needed, and the models and priors in use.

    Of other methods than the one at work, only the base model and its priors stay in memory. What
    is missing after a stop is learnt again.
    """

    def __init__(
        self,
        args: StreamArguments,
        ranker: RankerArguments,
        data: DataArguments,
        learning: LearningArguments,
        curvature: CurvatureArguments,
    ) -> None:
        self.args, self.ranker, self.data = args, ranker, data
        self.learning, self.curvature = learning, curvature
        self.methods = {method.name: method for method in check_methods(args.methods)}
        self._base = StreamPoint(learning.seed, args.base_periods, FROZEN)
        self._models: dict[StreamPoint, PreTrainedModel] = {}
        self._priors: dict[tuple[Any, ...], ConsolidationPrior] = {}

    def run(self, point: StreamPoint) -> dict[str, Any]:
        """Make an update, and measure all periods."""
        self._forget_others(point.method)
        periods = self._periods
        for at in self._chain(point):  # what has to be learnt again is not this update's time
            self._model(at)
        started = time.perf_counter()
        learned = self._ranker(point)
        seconds = time.perf_counter() - started
        learned.trainer.remove_callback(ProgressCallback)  # a bar for each period, within ours
        return {
            "test": [learned.accuracy(period.test) for period in periods],
            "validation": [learned.accuracy(period.validation) for period in periods],
            "seconds": round(seconds, 1),
            "examples": {s: [len(getattr(period, s)) for period in periods] for s in _SPLITS},
            "strengths": self._strengths(point),
        }

    @cached_property
    def _ready(self) -> tuple[PreTrainedModel, CandidateCollator, list[TaskData]]:
        start, tokenizer, periods = prepare_periods(
            self.args.task,
            self.args.periods,
            self.args.base_periods,
            self.ranker,
            self.data,
            self.curvature,
            self.learning.seed,
        )
        return start, CandidateCollator(tokenizer), periods

    @property
    def _collator(self) -> CandidateCollator:
        return self._ready[1]

    @property
    def _periods(self) -> list[TaskData]:
        return self._ready[2]

    def _forget_others(self, method: str) -> None:
        def stays(at: StreamPoint) -> bool:
            return at == self._base or at.method == method

        self._models = {at: model for at, model in self._models.items() if stays(at)}
        self._priors = {key: prior for key, prior in self._priors.items() if stays(key[0])}

    def _chain(self, point: StreamPoint) -> list[StreamPoint]:
        """The updates that one builds on, the base model first."""
        if point.method == RETRAINED or point == self._base:
            return []
        if point.method == FROZEN:
            return [self._base]
        earlier = range(self.args.base_periods + 1, point.period)
        return [self._base, *(replace(point, period=period) for period in earlier)]

    def _ranker(self, point: StreamPoint) -> Learned:
        """What ranks after an update."""
        if point.method == FROZEN:
            model = self._model(self._base)
        elif point.method != RETRAINED and self.methods[point.method].average == "scores":
            models = [self._model(at) for at in (*self._chain(point), point)]
            model = cast(PreTrainedModel, ScoreAverage(models))
        else:
            model = self._model(point)
        return as_learned(model, self._collator, self.learning)

    def _model(self, at: StreamPoint) -> PreTrainedModel:
        """The model of an update; learnt again if it is not in memory."""
        if at not in self._models:
            if at == self._base or at.method == RETRAINED:
                self._models[at] = self._fresh(self._until(at.period))
            else:
                self._models[at] = self._update(at)
        return self._models[at]

    def _until(self, period: int) -> TaskData:
        """All training examples up to a period, as one task."""
        train = [example for earlier in self._periods[:period] for example in earlier.train]
        name = f"{self.args.task}, periods 1 to {period}"
        return replace(self._periods[period - 1], name=name, train=train)

    def _fresh(self, task: TaskData) -> PreTrainedModel:
        """Learn a task from the start."""
        return learn(self._ready[0], task, self._collator, self.learning).model

    def _update(self, at: StreamPoint) -> PreTrainedModel:
        """Learn the newest period as the method does."""
        method, new = self.methods[at.method], self._periods[at.period - 1]
        if method.average == "scores":
            return self._fresh(new)
        chain = self._chain(at)
        before = self._model(chain[-1])
        learned = learn(
            before,
            new,
            self._collator,
            replace(self.learning, strengths=self._strengths(at) or None),
            [self._prior(link, method) for link in chain] if method.curvature else [],
            method=method,
            kept=kept_examples(method, self._periods[: at.period - 1], self.learning.seed),
        )
        if method.average == "parameters":
            # One model for the base periods together, then one for each period.
            learned = averaged(before, learned, len(chain) + 1, self._collator, self.learning)
        return learned.model

    def _strengths(self, at: StreamPoint) -> list[float]:
        """The λ of each prior; empty without a penalty."""
        if at.multiple is None:
            return []
        method, new = self.methods[at.method], len(self._periods[at.period - 1].train)
        if method.curvature == "identity":
            return [at.multiple for _ in self._chain(at)]
        priors = [self._prior(link, method) for link in self._chain(at)]
        return [at.multiple * bayesian_strength(prior, new) for prior in priors]

    def _prior(self, at: StreamPoint, method: Method) -> ConsolidationPrior:
        """The prior of what an update has just learnt."""
        key = (at, method.curvature, method.data_free, *sorted(method.estimate.items()))
        if key not in self._priors:
            base = at == self._base
            task = self._until(at.period) if base else self._periods[at.period - 1]
            learned = as_learned(self._model(at), self._collator, self.learning)
            self._priors[key] = make_prior(
                method, learned, task, self._collator, self.curvature, {}
            )
        return self._priors[key]
