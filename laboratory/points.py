"""Points: what is run. A seed, tasks in the order learnt, a method and its strength."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, geometric_mean
from typing import Any

from hf_kfc.errors import ConsolidationError
from hf_kfc.ranking import Outcome

__all__ = [
    "ANY_CHOICE",
    "BASELINES",
    "TIER3_FACTORS",
    "Choices",
    "Point",
    "Record",
    "choose_strength",
    "mean_of_old",
    "periods_so_far",
    "tier3_strengths",
]

TIER3_FACTORS = (0.01, 1.0, 100.0)
"""Multiples of the mean strength that tier 3 tries for its second prior (McInerney et al. 2021)."""

BASELINES = ("individual", "individual:0.1", "individual:update", "combined")
"""Runs that are no method: a task alone (on a share of its examples, or as many as a later tier
learns of it), and tasks together."""

_TOLERANCE = 0.01  # of accuracy

Record = Mapping[str, Any]
"""What a run came to, as JSON values; under ``validation`` and ``test`` its accuracies by task."""


@dataclass(frozen=True)
class Point:
    """One run.

    Args:
        seed: Of data, weights and order.
        tasks: In the order in which they are learnt; the last is the new one.
        method: Name of the method, or one of :data:`BASELINES`.
        strengths: λ of each prior, in the order of their tasks.
        multiple: Instead of ``strengths``, the multiple of each prior's Bayesian value
            N_old / (2 N_new); for l2, which has none, λ itself.
    """

    seed: int
    tasks: tuple[str, ...]
    method: str
    strengths: tuple[float, ...] = ()
    multiple: float | None = None

    def __str__(self) -> str:
        strength = "" if self.multiple is None else f" at {self.multiple:g}"
        return f"seed {self.seed}: {' > '.join(self.tasks)}, {self.method}{strength}"

    @property
    def strength(self) -> tuple[float, ...]:
        """What strengths are ordered by."""
        return self.strengths if self.multiple is None else (self.multiple,)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        values = {
            "seed": self.seed,
            "tasks": list(self.tasks),
            "method": self.method,
            "strengths": list(self.strengths),
        }
        return values if self.multiple is None else values | {"multiple": self.multiple}


def periods_so_far(base: int, period: int) -> tuple[str, ...]:
    """Return a stream's tasks up to a period: the base periods as one, then each by its number.

    Args:
        base: How many the base model learns at once.
        period: Number of the last one.
    """
    first = "1" if base == 1 else f"1-{base}"
    return (first, *map(str, range(base + 1, period + 1)))


def mean_of_old(point: Point, record: Record) -> float:
    """Return the development accuracy on the old tasks of a run, each counting alike."""
    return fmean(record["validation"][task] for task in point.tasks[:-1])


@dataclass(frozen=True)
class Choices:
    """The strengths that the development splits of one seed lead to.

    Args:
        records: The runs so far.
        seed: The seed whose development splits choose.
        old: From a run to its development accuracy on the old tasks.
    """

    records: Mapping[Point, Record]
    seed: int
    old: Callable[[Point, Record], float] = mean_of_old

    def chosen(self, tasks: Sequence[str], method: str) -> Point:
        """Choose among the runs of a method by :func:`choose_strength`.

        Args:
            tasks: In the order learnt.
            method: The method.

        Raises:
            ConsolidationError: The method, or no method, has not been run on these tasks.
        """
        tasks = tuple(tasks)
        none = Point(self.seed, tasks, "none")
        if none not in self.records:
            raise ConsolidationError(f"there is no run of {none} to choose against; run it first")
        runs = {
            point.strength: point
            for point in self.records
            if (point.seed, point.tasks, point.method) == (self.seed, tasks, method)
        }
        best = choose_strength(list(map(self._outcome, runs.values())), self._outcome(none))
        return runs[tuple(best.strengths)]

    def _outcome(self, point: Point) -> Outcome:
        """What a run did, on the development splits."""
        record = self.records[point]
        old, new = self.old(point, record), record["validation"][point.tasks[-1]]
        return Outcome(point.method, point.strength, None, old, new)


class _AnyChoice(Choices):
    """Chooses without records, so that runs can be counted before there are any."""

    def chosen(self, tasks: Sequence[str], method: str) -> Point:
        return Point(self.seed, tuple(tasks), method, (1.0,) * (len(tasks) - 1), 1.0)


ANY_CHOICE = _AnyChoice({}, 0)
"""What runs are counted with."""


def tier3_strengths(
    choices: Choices, tasks: Sequence[str], chain: Sequence[str], method: str
) -> Iterator[Point]:
    """Yield what tier 3 tries, by the rule of McInerney et al. 2021.

    The first prior keeps the strength chosen for it at tier 2. The second tries ÷100, ×1 and ×100
    around the mean (geometric, since strengths span decades) of the strengths that tier 2 chose
    where its task was the old one.

    Args:
        choices: With the runs of tier 2.
        tasks: All tasks.
        chain: Three of them.
        method: A method with a penalty.
    """
    first = choices.chosen(chain[:2], method).strengths
    second = geometric_mean(
        choices.chosen((chain[1], task), method).strengths[0] for task in tasks if task != chain[1]
    )
    for factor in TIER3_FACTORS:
        yield Point(choices.seed, tuple(chain), method, (*first, second * factor))


def choose_strength(candidates: Sequence[Outcome], plain: Outcome) -> Outcome:
    """Choose a strength on the development splits, by the rule of McInerney et al. 2021.

    The least drop of the old task without too much loss on the new one: among the strengths whose
    new-task accuracy is at most a point below that of no method, the one with the highest
    old-task accuracy (the smaller strength, if two are equal). If none keeps the new task, the
    one that loses least of it.

    Args:
        candidates: Outcomes of one method at several strengths, measured on development splits.
        plain: Outcome of no method.

    Returns:
        One of ``candidates``.

    Raises:
        ConsolidationError: There is no candidate.
    """
    if not candidates:
        raise ConsolidationError("there is no strength to choose from; run at least one")
    ordered = sorted(candidates, key=lambda o: tuple(o.strengths))
    kept = [o for o in ordered if o.new >= plain.new - _TOLERANCE]
    if not kept:
        return max(ordered, key=lambda o: o.new)
    return max(kept, key=lambda o: o.old or 0.0)
