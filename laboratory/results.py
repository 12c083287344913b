"""Results of a comparison: as JSON, as a table, and the rule that chooses a strength."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hf_kfc.errors import ConsolidationError
from hf_kfc.ranking import cf_reduction, relative_change

from .ledger import command, versions

__all__ = [
    "RESULTS_NAME",
    "RESULTS_TABLE",
    "Comparison",
    "Outcome",
    "Remembered",
    "choose_strength",
    "command",
    "versions",
]

RESULTS_NAME = "results.json"
RESULTS_TABLE = "results.md"


@dataclass(frozen=True)
class Outcome:
    """What one method did to the old task, and for the new one.

    Args:
        method: Name of the method.
        strengths: λ of each of its priors; empty where there is no penalty.
        damping: Relative damping; None where there is no penalty.
        old: Accuracy on the old task after learning the new one, of several tasks its mean; None
            if it was not measured.
        new: Accuracy on the new task.
        old_by_task: Accuracy on each old task.
    """

    method: str
    strengths: Sequence[float]
    damping: float | None
    old: float | None
    new: float
    old_by_task: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Remembered:
    """What is known of an earlier task, from its prior.

    Args:
        task: Its name.
        accuracy: Accuracy when it was learnt; None if the prior does not tell.
        fingerprint: Of the prior.
        source: Where the prior was read from, ``"org/name@sha"``; None if not from the Hub.
    """

    task: str
    accuracy: float | None
    fingerprint: str
    source: str | None


@dataclass
class Comparison:
    """Methods side by side on one pair of tasks.

    Args:
        old_task: Name of the old task, or of the old tasks.
        new_task: Name of the new task.
        old_before: Accuracy on the old task before the new one, of several tasks its mean; None
            if it was not measured.
        outcomes: One for each method; the one named ``none`` is what the others are held against.
        settings: Everything needed to repeat it.
        remembered: The earlier tasks that the last method remembers, in the order of its
            strengths.
    """

    old_task: str
    new_task: str
    old_before: float | None
    outcomes: list[Outcome] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    remembered: list[Remembered] = field(default_factory=list)

    def change(self, outcome: Outcome) -> float:
        """Return the relative change of the old task in percent.

        NaN where it was not measured, or where there was nothing to forget.
        """
        if not self.old_before or outcome.old is None:
            return math.nan
        return relative_change(self.old_before, outcome.old)

    def reduction(self, outcome: Outcome) -> float:
        """Return the CF reduction; NaN without method ``none`` or where that forgets nothing."""
        plain = [o for o in self.outcomes if o.method == "none"]
        if outcome.method == "none" or not plain:
            return math.nan
        return cf_reduction(self.change(outcome), self.change(plain[0]))

    def table(self) -> str:
        """Return the comparison as a Markdown table, without columns of which nothing is known."""
        columns: dict[str, list[str]] = {
            "method": [o.method for o in self.outcomes],
            "λ": [", ".join(f"{s:.3g}" for s in o.strengths) or "-" for o in self.outcomes],
            "damping": [_number(o.damping, "{:g}") for o in self.outcomes],
            f"{self.old_task} before": [_number(self.old_before, "{:.1%}") for _ in self.outcomes],
            "after": [_number(o.old, "{:.1%}") for o in self.outcomes],
            "change": [_number(self.change(o) / 100, "{:+.1%}") for o in self.outcomes],
            "CF reduction": [_number(self.reduction(o), "{:.0%}") for o in self.outcomes],
            self.new_task: [_number(o.new, "{:.1%}") for o in self.outcomes],
        }
        known = {name: cells for name, cells in columns.items() if set(cells) != {"-"}}
        ruler = ["---", *["---:"] * (len(known) - 1)]
        rows = [list(known), ruler, *map(list, zip(*known.values(), strict=True))]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values, with the command and the versions that made it."""
        outcomes = [
            asdict(o) | {"change": _json(self.change(o)), "cf_reduction": _json(self.reduction(o))}
            for o in self.outcomes
        ]
        return asdict(self) | {"outcomes": outcomes, "command": command(), "versions": versions()}

    def save(self, directory: Path) -> None:
        """Write ``results.json`` and ``results.md``.

        Args:
            directory: An existing folder.
        """
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
        (directory / RESULTS_NAME).write_text(text + "\n", encoding="utf-8")
        (directory / RESULTS_TABLE).write_text(self.table() + "\n", encoding="utf-8")


def choose_strength(
    candidates: Sequence[Outcome], plain: Outcome, tolerance: float = 0.01
) -> Outcome:
    """Choose a strength on the development splits, by the rule of McInerney et al. 2021.

    The least drop of the old task without too much loss on the new one: among the strengths whose
    new-task accuracy is at most ``tolerance`` below that of no method, the one with the highest
    old-task accuracy (the smaller strength, if two are equal). If none keeps the new task, the
    one that loses least of it.

    Args:
        candidates: Outcomes of one method at several strengths, measured on development splits.
        plain: Outcome of no method.
        tolerance: Loss on the new task that is not too much.

    Returns:
        One of ``candidates``.

    Raises:
        ConsolidationError: There is no candidate.
    """
    if not candidates:
        raise ConsolidationError("there is no strength to choose from; run at least one")
    ordered = sorted(candidates, key=lambda o: tuple(o.strengths))
    kept = [o for o in ordered if o.new >= plain.new - tolerance]
    if not kept:
        return max(ordered, key=lambda o: o.new)
    return max(kept, key=lambda o: o.old or 0.0)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else form.format(value)


def _json(value: float) -> float | None:
    return None if math.isnan(value) else value
