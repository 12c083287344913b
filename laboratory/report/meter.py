"""How well what is measured on probes tells what an old task has lost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from ..methods import Method
from ..points import Point, Record
from .figures import new_figure, save_figure
from .tables import Table, number

__all__ = ["meter_frame", "meter_table", "save_meter_figure"]

_KINDS = {
    "no method": "#7a7a7a",
    "penalty alone": "#0072B2",
    "trained on such probes": "#D55E00",
    "trained on other inputs": "#009E73",
}
"""What runs are told apart by, with a colour of each."""


def meter_frame(records: Mapping[Point, Record]) -> pd.DataFrame:
    """Return one row for each run and old task of which probes were measured.

    Args:
        records: The runs.

    Returns:
        ``method``, ``kind`` (a key of those told apart), ``tier``, ``nats`` and ``changed`` (of
        probes that were held out), and ``lost``: points of test accuracy since the task was learnt.
    """
    rows = []
    for point, record in records.items():
        for task, measured in record.get("probes", {}).items():
            place = point.tasks.index(task)
            learnt = replace(
                point, tasks=point.tasks[: place + 1], strengths=point.strengths[:place]
            )
            if not place:
                learnt = replace(learnt, method="individual")
            if learnt not in records:
                continue
            rows.append(
                {
                    "method": point.method,
                    "kind": _kind(point.method),
                    "tier": len(point.tasks),
                    "nats": measured["forgetting"],
                    "changed": measured["changed_decisions"],
                    "lost": 100 * (records[learnt]["test"][task] - record["test"][task]),
                }
            )
    return pd.DataFrame(rows, columns=["method", "kind", "tier", "nats", "changed", "lost"])


def _kind(name: str) -> str:
    method = Method.parse(name)
    if method.probes in ("names", "own_names", "aliases"):
        return "trained on such probes"
    if method.probes or method.rehearsal:
        return "trained on other inputs"
    return "penalty alone" if method.curvature else "no method"


def meter_table(frame: pd.DataFrame) -> Table:
    """Return how well nats and changed decisions tell the loss, by what was trained on.

    The rank correlation is Spearman's. The error is the mean distance in points of the loss from
    a·√nats, with a fitted to all runs: by Pinsker's inequality that bounds how far probabilities
    move.

    Args:
        frame: Of :func:`meter_frame`.
    """
    root = np.sqrt(frame.nats)
    slope = float((root * frame.lost).sum() / (root**2).sum())
    names = ("runs and old tasks", "rank correlation of nats", "of changed decisions", "error")
    columns = [("", "trained with"), *(("", name) for name in names), ("", "bias")]
    rows = []
    for kind in ["all", *_KINDS]:
        own = frame if kind == "all" else frame[frame.kind == kind]
        if own.empty:
            continue
        ranks = own[["nats", "changed", "lost"]].corr("spearman").lost
        off = own.lost - slope * np.sqrt(own.nats)
        values = [number(float(ranks[name]), 2) for name in ("nats", "changed")]
        error, bias = float(off.abs().mean()), float(off.mean())
        rows.append([kind, str(len(own)), *values, number(error), number(bias)])
    return Table(columns, [("", rows)])


def save_meter_figure(frame: pd.DataFrame, paths: Sequence[Path]) -> None:
    """Draw the loss of old tasks against what probes tell of it.

    Args:
        frame: Of :func:`meter_frame`.
        paths: PNG or SVG files.
    """
    figure = new_figure(3.6)
    for axes, (column, label) in zip(
        figure.subplots(1, 2, sharey=True),
        (("nats", "nats on the probes held out"), ("changed", "share of changed decisions")),
        strict=True,
    ):
        for kind, colour in _KINDS.items():
            own = frame[frame.kind == kind]
            axes.plot(
                own[column], own.lost, "o", color=colour, ms=4.5, mec="white", mew=0.4, label=kind
            )
        axes.axhline(0, color="#999999", linewidth=0.8)
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    least = frame.nats[frame.nats > 0].min()
    figure.axes[0].set_xscale("log")
    figure.axes[0].set_xlim(left=least / 1.5 if not math.isnan(least) else None)
    left, right = figure.axes[0].get_xlim()
    ticks = [t for t in (1e-4, 1e-3, 0.01, 0.1, 1, 10) if left <= t <= right]
    figure.axes[0].set_xticks(ticks, [f"{t:g}" for t in ticks])
    figure.axes[0].minorticks_off()
    figure.axes[0].set_ylabel("old task: points lost")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    save_figure(figure, paths)
