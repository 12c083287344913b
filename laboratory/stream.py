"""A model that is updated every period with that period's data alone, by every method.

    accelerate launch -m laboratory stream --data_dir data --results runs/stream.jsonl \\
        --train_examples 12000 --validation_examples 3000 --test_examples 6000

The protocol of practitioners who retrain every month (Sanders 2021, "Catastrophic Forgetting,
Part 2"; Harang & Sanders 2023, arXiv:2306.10181). A task's documents are cut into periods in the
order of their identifiers (MedMentions' are PubMed's and grow with time). The base model learns the
first ones, every update one more, and after each update all periods are measured, the future ones
too. A stream that was stopped goes on where it was, and takes further methods and seeds. Tables and
pictures are made of the results by `python -m laboratory report --stream`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from hf_kfc.errors import ConsolidationError
from hf_kfc.ranking import CandidateCollator

from .engine import Experiment, ExperimentArguments, Material
from .methods import check_methods
from .periods import prepare_periods
from .points import Choices, Point, Record, periods_so_far

__all__ = ["Stream", "StreamArguments"]

_MULTIPLES: Mapping[str, tuple[float, ...]] = {
    "identity": (1e-4, 1e-3, 1e-2, 1e-1),  # λ itself: without data there is no Bayesian value
    "diagonal": (10.0, 100.0, 1e3, 1e4),
    "kronecker": (1.0, 3.0, 10.0, 30.0),
    "kronecker_eigen": (1.0, 3.0, 10.0, 30.0),
}
"""Strengths to choose from at the first update, as multiples of the Bayesian value."""

_METHODS = (
    "none lower_lr l2 ewc kfc rehearsal rehearsal_growing replay:0.05 rehearsal:0.05+ewc average "
    "scores lora"
)


@dataclass(kw_only=True)
class StreamArguments(ExperimentArguments):
    """Which task is cut into periods, by which methods they are learnt, where the results go."""

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
        default_factory=_METHODS.split,
        metadata={
            "help": "Methods of updating, as in 'kfc', 'replay:0.05' or 'rehearsal:0.05+kfc'; "
            "none is always run, and the base model and one retrained on all periods so far."
        },
    )

    def __post_init__(self) -> None:
        if not 1 <= self.base_periods < self.periods:
            raise ConsolidationError(
                f"base_periods is {self.base_periods} of {self.periods} periods; give at least 1 "
                "and leave at least one to learn later"
            )
        self.refuse_twice("seeds")
        for method in check_methods(self.methods).values():
            if method.average == "scores" and method.name != "scores":
                raise ConsolidationError(
                    f"method '{method.name}' joins others to scores, whose models forget nothing "
                    "because each learns one period alone; give 'scores' by itself"
                )
        # Strengths are chosen against it, so it goes first.
        self.methods = ["none", *(name for name in self.methods if name != "none")]


class Stream(Experiment):
    """The base model, one retrained at every period, and each method's own chain of updates.

    A method with a penalty has a prior of the base periods and of each period learnt since,
    estimated at the model that had just learnt it, with λ = multiple · N_i / (2 N_new); the
    multiple is chosen at the first update of the first seed. A new CNN has the vocabulary of the
    base periods, all that could be known then. (The candidates are those of the task's own
    ontology, at all times.)
    """

    def __init__(self, args: StreamArguments, *others: Any) -> None:
        self.args, self.base = args, args.base_periods
        super().__init__(args, check_methods(args.methods), *others)

    @property
    def settings(self) -> dict[str, Any]:
        """The task and its periods; methods and later seeds may be added."""
        own = {name: getattr(self.args, name) for name in ("task", "periods", "base_periods")}
        return super().settings | own | {"first of seeds": self.seeds[0]}  # strengths are its

    def prepare(self, seed: int) -> Material:
        """Read the periods; those of the base model are one task as well."""
        args = self.args
        start, tokenizer, periods = prepare_periods(
            args.task, args.periods, self.base, self.ranker, self.data, self.curvature, seed
        )
        base = tuple(periods[: self.base])
        train = [example for period in base for example in period.train]
        name = f"{args.task}, periods 1 to {self.base}"
        first = replace(base[-1], name=name, train=train, parts=base)
        measured = {str(number): period for number, period in enumerate(periods, 1)}
        tasks = {periods_so_far(self.base, self.base)[0]: first}
        tasks |= {str(n): measured[str(n)] for n in range(self.base + 1, args.periods + 1)}
        return Material(start, CandidateCollator(tokenizer), tasks, measured)

    def points(self, seed: int, choices: Choices) -> Iterator[Point]:
        """All updates of a seed, one method after the other."""
        chains = [
            periods_so_far(self.base, period) for period in range(self.base, self.args.periods + 1)
        ]
        yield Point(seed, chains[0], "individual")
        updates = chains[1:]
        yield from (Point(seed, chain, "combined") for chain in updates)
        for name, method in self.methods.items():
            done, multiple = 0, None
            if method.curvature and seed == self.seeds[0]:
                for tried in _MULTIPLES[method.curvature]:
                    yield Point(seed, updates[0], name, (), tried)
                done = 1
            if method.curvature:
                multiple = choices.chosen(updates[0], name).multiple
            yield from (Point(seed, chain, name, (), multiple) for chain in updates[done:])

    def old_accuracy(self, point: Point, record: Record) -> float:
        """Of all examples that were seen before, each counting alike."""
        seen = [str(number) for number in range(1, int(point.tasks[-1]))]
        sizes = record["examples"]["validation"]
        right = sum(record["validation"][period] * sizes[period] for period in seen)
        return float(right / sum(sizes[period] for period in seen))
