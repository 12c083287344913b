"""What a training forgot, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import ConsolidationError

__all__ = ["draw_forgetting"]


def draw_forgetting(
    history: Sequence[Mapping[str, Any]], path: str | Path, budget: float | None = None
) -> None:
    """Draw what was measured: KL in nats, and below it the share of changed decisions.

    Raises:
        ConsolidationError: Nothing was measured, or matplotlib is not installed.
    """
    measured = [entry for entry in history if "forgetting" in entry]
    if not measured:
        raise ConsolidationError(
            "no forgetting was measured: train with probes, of which some are held out"
        )
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an optional dependency
    except ImportError:
        raise ConsolidationError(
            "pictures need matplotlib: pip install 'hf_kfc[recipes]'"
        ) from None
    figure = Figure(figsize=(6, 5), layout="constrained")
    parts = figure.subplots(2, 1, sharex=True)
    titles = {"forgetting": "KL to the earlier model, nats", "changed_decisions": "% changed"}
    steps = [entry["step"] for entry in measured]
    for (name, title), axes in zip(titles.items(), parts, strict=True):
        factor = 100 if name == "changed_decisions" else 1
        for key in (key for key in measured[0] if key.startswith(name)):
            label = key.removeprefix(name).lstrip("_") or "mean"
            axes.plot(steps, [factor * e[key] for e in measured], marker=".", label=label)
        axes.set(ylabel=title)
        axes.set_ylim(bottom=0)
    if budget is not None:
        parts[0].axhline(budget, color="grey", linestyle="--", label="budget")
    if len(parts[0].get_lines()) > 1:
        parts[0].legend()
    parts[1].set(xlabel="optimizer step")
    figure.savefig(path)
