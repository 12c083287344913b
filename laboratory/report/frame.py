"""Runs as a data frame: what each did to its old tasks, and for the new one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import permutations
from statistics import fmean
from typing import Any

import pandas as pd

from hf_kfc.errors import ConsolidationError
from hf_kfc.ranking import cf_reduction

from ..points import Choices, Point, Record

__all__ = ["arrow", "reduction", "runs_frame"]


def arrow(tasks: Sequence[str]) -> str:
    """Return tasks in their order as text; chains go by this name."""
    return " → ".join(tasks)


def reduction(own: float, without: float) -> float:
    """Return the CF reduction in percent; NaN where a change is not known."""
    return math.nan if math.isnan(own + without) else 100 * cf_reduction(own, without)


def runs_frame(records: Mapping[Point, Record], update: bool) -> pd.DataFrame:
    """Return one row for each run, with what it did to old tasks and for the new one.

    NaN stands for what cannot be known, as a run is missing or there was nothing to forget. A run
    of ``combined`` has a row for each order of its tasks.

    Args:
        records: The runs.
        update: Whether tasks after the first are held against ``individual:update``.

    Returns:
        ``seed``, ``chain``, ``tier``, ``new_task``, ``method`` and ``strength``; on test splits
        ``before`` and ``old``, mean accuracies of the old tasks alone and now, ``change``, the mean
        of their relative changes, and ``new``, the accuracy on the new task, all in percent; and
        whether the development splits of the first seed have ``chosen`` the strength.
    """
    later = "individual:update" if update else "individual"
    alone = {(p.seed, p.tasks, p.method): r["test"] for p, r in records.items()}

    def before(seed: int, task: str, place: int) -> float:
        found = alone.get((seed, (task,), later if place else "individual"))
        return math.nan if found is None else float(found[task])

    rows = []
    for point, record in records.items():
        orders = permutations(point.tasks) if point.method == "combined" else [point.tasks]
        for tasks in orders:
            test, old = record["test"], tasks[:-1]
            anchors = [before(point.seed, task, place) for place, task in enumerate(old)]
            changes = [
                100 * (test[task] - own) / own if own else math.nan
                for task, own in zip(old, anchors, strict=True)
            ]
            rows.append(
                {
                    "seed": point.seed,
                    "chain": arrow(tasks),
                    "tier": len(tasks),
                    "new_task": tasks[-1],
                    "method": point.method,
                    "strength": point.strength,
                    "before": 100 * fmean(anchors) if old else math.nan,
                    "old": 100 * fmean(test[task] for task in old) if old else math.nan,
                    "change": fmean(changes) if old else math.nan,  # NaN if one of them is
                    "new": 100 * test[tasks[-1]],
                }
            )
    frame = pd.DataFrame(rows)
    chosen = _chosen(records)
    frame["chosen"] = [
        chosen.get((row.chain, row.method), row.strength) == row.strength
        for row in frame.itertuples()
    ]
    return frame


def _chosen(records: Mapping[Point, Record]) -> dict[tuple[str, str], Any]:
    """The strength of each method and chain with several; None where nothing can be chosen."""
    seed = next(iter(records)).seed
    choices = Choices(records, seed)
    chosen: dict[tuple[str, str], Any] = {}
    for point in records:
        if point.strength and (key := (arrow(point.tasks), point.method)) not in chosen:
            try:
                chosen[key] = choices.chosen(point.tasks, point.method).strength
            except ConsolidationError:
                chosen[key] = None
    return chosen
