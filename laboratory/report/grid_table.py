"""The tables of a grid over methods, damping and strengths on one pair of tasks."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from hf_kfc.errors import ConsolidationError

from ..ledger import read_ledger
from .frame import reduction, runs_frame

__all__ = ["grid_table", "spread"]


def grid_table(results: Path) -> str:
    """Make the Markdown tables of a grid, on test splits.

    The first has means over seeds ± standard deviations at the chosen strengths, the second every
    strength of the first seed.

    Args:
        results: File of a grid.

    Raises:
        ConsolidationError: It is not such a file, or the grid is not finished.
    """
    _, records = read_ledger(results)
    frame = runs_frame(records, update=False)
    frame = frame[frame.tier == 2]
    if frame.empty or frame.chain.nunique() > 1 or "none" not in set(frame.method):
        raise ConsolidationError(f"{results} is not of a grid, or has no run of none; run the grid")
    for method, own in frame[frame.chosen].groupby("method"):
        if missing := set(frame.seed) - set(own.seed):
            raise ConsolidationError(
                f"{results} has no run of {method} with seed {min(missing)}; run the grid again, "
                "it goes on"
            )
    return f"{_table(frame)}\n\n{_strength_table(frame)}"


def spread(values: pd.Series, sign: str = "") -> str:
    """Return a mean ± standard deviation as text; without, of one value alone.

    Args:
        values: The values.
        sign: ``"+"`` for a change.
    """
    deviation = f" ± {values.std():.1f}" if len(values) > 1 else ""
    return f"{values.mean():{sign}.1f}{deviation}"


def _table(frame: pd.DataFrame) -> str:
    old, new = frame.chain.iloc[0].split(" → ")
    lines = [
        f"| method | damping | λ / Bayes | {old} before | after | change (%) "
        f"| CF reduction (%) | {new} |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    without = frame[frame.method == "none"].change.mean()
    for name in frame.method.unique():
        own = frame[frame.chosen & (frame.method == name)]
        method, _, damping = name.partition(":")
        multiple = f"{own.strength.iloc[0][0]:g}" if method != "none" else ""
        cells = (
            method,
            damping,
            f"λ = {multiple}" if method == "l2" else multiple,
            spread(own.before),
            spread(own.old),
            spread(own.change),
            # Of the mean drops, as in the paper: a ratio per seed is unstable where little is
            # forgotten.
            "" if method == "none" else f"{reduction(own.change.mean(), without):.0f}",
            spread(own.new),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _strength_table(frame: pd.DataFrame) -> str:
    """All strengths of the first seed: what the choice on development splits could have been."""
    first = frame[frame.seed == frame.seed.iloc[0]]
    plain = first[first.method == "none"].iloc[0]
    new = frame.chain.iloc[0].split(" → ")[1]
    lines = [
        f"First seed, all strengths: CF reduction (%) / points of {new} against none.",
        "",
        "| method | damping | λ / Bayes: CF reduction / new task |",
        "|---|---:|---|",
    ]
    for name, own in first[first.method != "none"].groupby("method", sort=False):
        method, _, damping = str(name).partition(":")
        cells = [
            f"{run.strength[0]:g}: {reduction(run.change, plain.change):.0f} / "
            f"{run.new - plain.new:+.1f}"
            for run in own.sort_values("strength").itertuples()
        ]
        lines.append(f"| {method} | {damping} | {', '.join(cells)} |")
    return "\n".join(lines)
