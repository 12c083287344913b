"""Pictures of comparisons, and of what priors predict."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hf_kfc.errors import ConsolidationError

from .prediction import Prediction
from .results import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["require_matplotlib", "save_comparison_figure", "save_prediction_figure"]


def require_matplotlib() -> None:
    """Make sure that pictures can be drawn, before hours of work end without one.

    Raises:
        ConsolidationError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: PLC0415, F401
    except ImportError:
        raise ConsolidationError(
            "pictures need matplotlib; install it with pip install hf_kfc[recipes]"
        ) from None


def save_comparison_figure(comparison: Comparison, path: Path) -> None:
    """Draw what each method keeps of the old task and reaches on the new one.

    Args:
        comparison: With the old task measured.
        path: A PNG or SVG file.
    """
    from matplotlib import rc_context  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    with rc_context({"text.parse_math": False}):  # a name may hold dollar signs
        _draw(comparison, Figure(figsize=(9, 3.6), layout="constrained")).savefig(path, dpi=150)


def save_prediction_figure(prediction: Prediction, path: Path) -> None:
    """Draw what displacements of growing size cost, as the prior predicts and as measured.

    Args:
        prediction: The measurement.
        path: A PNG or SVG file.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    sizes = [own.size for own in prediction.increases]
    lines = {
        "predicted, ½ΔᵀFΔ": ("o--", "#2f6fb2", [own.predicted for own in prediction.increases]),
        "on training examples": ("o-", "#c0392b", [own.training for own in prediction.increases]),
        "on test examples": ("o-", "#9a9a9a", [own.test for own in prediction.increases]),
    }
    for label, (style, colour, values) in lines.items():
        axes.plot(sizes, values, style, color=colour, label=label)
    smallest = min((abs(v) for _, _, values in lines.values() for v in values if v), default=1.0)
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=smallest)  # measured ones may be below zero
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("size of the displacement, relative to the parameters")
    axes.set_ylabel("increase of the mean loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def _draw(comparison: Comparison, figure: Figure) -> Figure:
    names = [outcome.method for outcome in comparison.outcomes]
    old_axes, new_axes = figure.subplots(1, 2)
    old = [100 * (outcome.old or 0.0) for outcome in comparison.outcomes]
    new = [100 * outcome.new for outcome in comparison.outcomes]
    for axes, values, task in (
        (old_axes, old, f"old task: {comparison.old_task}"),
        (new_axes, new, f"new task: {comparison.new_task}"),
    ):
        colours = ["#9a9a9a" if name == "none" else "#2f6fb2" for name in names]
        axes.bar_label(axes.bar(names, values, color=colours), fmt="%.1f", padding=2)
        axes.set_title(task, fontsize=11)
        axes.set_ylabel("accuracy after tier 2 (%)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.15)
    if comparison.old_before is not None:
        before = 100 * comparison.old_before
        old_axes.axhline(before, color="#c0392b", linestyle="--", linewidth=1.2)
        old_axes.text(
            -0.45, before, f"before {before:.1f}", color="#c0392b", va="bottom", fontsize=9
        )
        old_axes.set_ylim(0, max(*old, before, 1.0) * 1.15)
    return figure
