"""The search for strengths: what is tried, and the rule by which one is chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, geometric_mean
from typing import Any

from .results import Outcome, choose_strength

__all__ = ["TIER3_FACTORS", "Choices", "Point", "tier3_strengths"]

TIER3_FACTORS = (0.01, 1.0, 100.0)
"""Multiples of the mean strength that tier 3 tries for its second prior (McInerney et al. 2021)."""


@dataclass(frozen=True)
class Point:
    """One run.

    Args:
        seed: Of data, weights and order.
        tasks: In the order in which they are learnt; the last is the new one.
        method: Name of the method, or ``individual`` (the task alone, ``:0.1`` for a tenth of its
            examples) or ``combined`` (all tasks at once).
        strengths: λ of each prior, in the order of their tasks.
    """

    seed: int
    tasks: tuple[str, ...]
    method: str
    strengths: tuple[float, ...] = ()


@dataclass(frozen=True)
class Choices:
    """The strengths that the development splits of one seed lead to.

    Args:
        records: Outcomes of runs, with accuracies by task under ``validation``.
        seed: The seed whose development splits choose.
    """

    records: Mapping[Point, Mapping[str, Any]]
    seed: int

    def chosen(self, tasks: Sequence[str], method: str) -> Point:
        """Choose among the runs of a method by :func:`choose_strength`.

        Args:
            tasks: The chain.
            method: The method.

        Returns:
            One of the runs.

        Raises:
            ConsolidationError: The method has not been run on this chain.
            KeyError: The chain has not been run with no method.
        """
        tasks = tuple(tasks)
        runs = {
            point.strengths: _outcome(point, record)
            for point, record in self.records.items()
            if (point.seed, point.tasks, point.method) == (self.seed, tasks, method)
        }
        none = Point(self.seed, tasks, "none")
        best = choose_strength(list(runs.values()), _outcome(none, self.records[none]))
        return Point(self.seed, tasks, method, tuple(best.strengths))


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


def _outcome(point: Point, record: Mapping[str, Any]) -> Outcome:
    *old, new = point.tasks
    accuracies = record["validation"]
    kept = fmean(accuracies[task] for task in old)
    return Outcome(point.method, point.strengths, None, kept, accuracies[new])
