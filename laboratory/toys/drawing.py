"""Pictures of the toy computations, drawn from their stored results alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["save_cnn_fisher_figure", "save_hessian_figure", "save_two_parameter_figure"]

# Okabe and Ito's colours, which the colour-blind tell apart.
_COLOURS = {
    "none": "#7a7a7a",
    "full": "#000000",
    "kronecker": "#0072B2",
    "diagonal": "#D55E00",
    "fisher": "#0072B2",
    "hessian": "#D55E00",
    "clamped": "#009E73",
}
_LABELS = {
    "none": "no penalty",
    "full": "exact Fisher",
    "kronecker": "Kronecker (KFC)",
    "diagonal": "diagonal (EWC)",
    "fisher": "Fisher's diagonal",
    "hessian": "Hessian's diagonal",
    "clamped": "the same, negative entries set to 0",
}
_LINES = {"full": "-", "kronecker": "--", "diagonal": "-."}
# Marker, its size, and where its label goes, in points: exact and Kronecker are neighbours.
_MARKERS = {
    "none": ("X", 11, 0, -28),
    "full": ("o", 11, -50, 26),
    "kronecker": ("D", 7, 30, 34),
    "diagonal": ("s", 9, 0, -28),
}
_INCREASE = 0.02


def save_two_parameter_figure(results: Mapping[str, Any], path: Path) -> None:
    """Draw the approximations of an old loss, and where a new task ends under each.

    Args:
        results: Of :func:`~laboratory.toys.two_parameters`, as stored.
        path: A PNG or SVG file.
    """
    figure = _figure(4.9)
    (left, right), below = figure.subplots(2, 2, height_ratios=(1, 0.36))
    anchor, grid = results["anchor"], results["grid"]
    lowest = results["end_points"]["none"]["new_loss"]
    for axes, task, bottom in ((left, "old", anchor["old_loss"]), (right, "new", lowest)):
        levels = [bottom + up for up in (_INCREASE, 0.1, 0.3, 0.6, 1.0)]
        axes.contour(grid["first"], grid["second"], grid[f"{task}_loss"], levels, colors="#b0b0b0")
        axes.plot(*anchor["parameters"], "*", color="#CC79A7", ms=16, mec="black")
        axes.set_xlabel("first parameter")
        axes.set_aspect("equal")
        axes.set_xlim(grid["first"][0], grid["first"][-1])
        axes.set_ylim(grid["second"][0], grid["second"][-1])
    left.set_ylabel("second parameter")
    left.set_title(f"old loss, and where ½ ΔᵀFΔ = {_INCREASE:g}", fontsize=11)
    right.set_title("new loss, and where learning it ends", fontsize=11)
    _draw_ellipses(left, results)
    _draw_end_points(right, results)
    _label(left, "anchor", anchor["parameters"], (-48, -42), "black")
    _label(right, "anchor", anchor["parameters"], (30, 24), "black")
    for axes, own in zip(below, (left, right), strict=True):
        axes.set_axis_off()
        axes.legend(*own.get_legend_handles_labels(), loc="upper center", frameon=False)
    title = f"old / new loss there (anchor: {anchor['old_loss']:.3f} / {anchor['new_loss']:.3f})"
    below[1].get_legend().set_title(title)
    _save(figure, path)


def save_cnn_fisher_figure(results: Mapping[str, Any], path: Path) -> None:
    """Draw parts of the exact Fisher of toy CNNs beside their approximations.

    Args:
        results: Of :func:`~laboratory.toys.cnn_fisher`, as stored.
        path: A PNG or SVG file.
    """
    pictures = results["pictures"]
    figure = _figure(3.1 * len(pictures))
    rows = figure.subplots(len(pictures), 3, squeeze=False)
    for row, picture in zip(rows, pictures, strict=True):
        errors = results["models"][picture["model"]]["errors"][picture["block"]]
        scale = max(abs(value) for line in picture["exact"] for value in line)
        size = len(picture["diagonal"])
        diagonal = [
            [picture["diagonal"][i] if i == j else 0.0 for j in range(size)] for i in range(size)
        ]
        for axes, name, matrix in (
            (row[0], "exact", picture["exact"]),
            (row[1], "kronecker", picture["kronecker"]),
            (row[2], "diagonal", diagonal),
        ):
            image = axes.imshow(
                [[value / scale for value in line] for line in matrix],
                cmap="RdBu_r",
                vmin=-1,
                vmax=1,
                interpolation="nearest",
            )
            axes.set_title(
                f"{_LABELS[name]}, error {errors[name]:.0%}" if name in errors else _LABELS["full"],
                fontsize=11,
            )
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_color("#b0b0b0")
        model = picture["model"].replace("_", " ")
        row[0].set_ylabel(f"{model}: {picture['block']}", fontsize=11)
    bar = figure.colorbar(image, ax=rows, shrink=0.6, aspect=40, location="bottom", extend="both")
    bar.set_label("entry, relative to the largest of the exact block")
    _save(figure, path)


def save_hessian_figure(results: Mapping[str, Any], path: Path) -> None:
    """Draw how learning goes with a penalty made of the Hessian, and of the Fisher.

    Args:
        results: Of :func:`~laboratory.toys.hessian_lesson`, as stored.
        path: A PNG or SVG file.
    """
    strengths = sorted({run["strength"] for run in results["runs"]} - {0.0})
    figure = _figure(7.2)
    rows = figure.subplots(3, len(strengths), sharex=True, sharey="row", squeeze=False)
    for row, (key, label) in zip(
        rows,
        {
            "penalty": "penalty λ ΔᵀFΔ",
            "old_accuracy": "accuracy, old task (%)",
            "new_accuracy": "accuracy, new task (%)",
        }.items(),
        strict=True,
    ):
        row[0].set_ylabel(label)
        for axes, strength in zip(row, strengths, strict=True):
            for run in results["runs"]:
                if run["strength"] in (0.0, strength):
                    _curve(axes, run, key)
            if key == "penalty":
                known = " (Bayesian)" if strength == results["bayesian_strength"] else ""
                axes.set_title(f"λ = {strength:g}{known}", fontsize=11)
                axes.set_yscale("symlog", linthresh=1)
                axes.set_yticks(_powers(results["runs"]))
                axes.minorticks_off()
            else:
                axes.set_ylim(30, 100)
    for axes in rows[-1]:
        axes.set_xlabel("step")
    handles, labels = rows[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    hessian = results["hessian"]
    figure.suptitle(
        f"{hessian['negative_share']:.0%} of the Hessian's diagonal is negative, "
        f"down to {hessian['lowest']:.3f} (highest {hessian['highest']:.3f})",
        fontsize=12,
    )
    _save(figure, path)


def _figure(height: float) -> Figure:
    from matplotlib.figure import Figure  # noqa: PLC0415

    return Figure(figsize=(9, height), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)


def _draw_ellipses(axes: Axes, results: Mapping[str, Any]) -> None:
    axes.plot([], [], color="#b0b0b0", label=f"old loss (innermost: up by {_INCREASE:g})")
    for name, style in _LINES.items():
        ring = _ellipse(results["fisher"][name], results["anchor"]["parameters"], 2 * _INCREASE)
        error = f", error {results['errors'][name]:.0%}" if name in results["errors"] else ""
        axes.plot(*ring, style, color=_COLOURS[name], linewidth=2, label=_LABELS[name] + error)


def _draw_end_points(axes: Axes, results: Mapping[str, Any]) -> None:
    for name, end in results["end_points"].items():
        marker, size, x, y = _MARKERS[name]
        axes.plot(
            *end["parameters"],
            marker,
            color=_COLOURS[name],
            markersize=size,
            markeredgecolor="white",
            linestyle="none",
            label=f"{_LABELS[name]}: {end['old_loss']:.3f} / {end['new_loss']:.3f}",
        )
        text = _LABELS[name].split(" (")[0]
        _label(axes, text, end["parameters"], (x, y), _COLOURS[name])


def _label(
    axes: Axes, text: str, point: Sequence[float], offset: tuple[float, float], colour: str
) -> None:
    """Name a point beside it, with a line to it."""
    axes.annotate(
        text,
        (point[0], point[1]),
        offset,
        textcoords="offset points",
        ha="center",
        va="center",
        fontsize=10,
        color=colour,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkB": 6},
    )


def _ellipse(
    matrix: Sequence[Sequence[float]], centre: Sequence[float], level: float
) -> tuple[list[float], list[float]]:
    """Return the points Δ with ΔᵀFΔ = level around a centre, F = L Lᵀ: Δ = √level L⁻ᵀ u."""
    (a, b), (_, d) = matrix
    first = math.sqrt(a)
    below, second = b / first, math.sqrt(d - b * b / a)
    angles = [2 * math.pi * i / 180 for i in range(181)]
    ys = [math.sin(t) / second for t in angles]
    xs = [(math.cos(t) - below * v) / first for t, v in zip(angles, ys, strict=True)]
    size = math.sqrt(level)
    return [centre[0] + size * u for u in xs], [centre[1] + size * v for v in ys]


def _curve(axes: Axes, run: Mapping[str, Any], key: str) -> None:
    name, curves = run["penalty_of"], run["curves"]
    if name == "none" and key == "penalty":
        axes.plot([], [], color=_COLOURS[name], label=_LABELS[name])
        return
    values = curves[key] if key == "penalty" else [100 * value for value in curves[key]]
    style = ":" if name == "clamped" else "-"
    axes.plot(curves["step"], values, style, color=_COLOURS[name], label=_LABELS[name])


def _powers(runs: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return ticks for penalties down to the lowest: 0 and about four negative powers of ten."""
    lowest = min(min(run["curves"]["penalty"]) for run in runs)
    depth = math.ceil(math.log10(max(-lowest, 10.0)))
    return [0.0, *(-(10.0**power) for power in range(depth, 0, -math.ceil(depth / 4)))]
