"""Pictures of what priors predict."""

from __future__ import annotations

from pathlib import Path

from hf_kfc.ranking import require_matplotlib

from .prediction import Prediction

__all__ = ["require_matplotlib", "save_prediction_figure"]


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
