"""Pictures of a stream: the accuracy of each period, and of all so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from .figures import save_figure
from .stream_table import FROZEN, RETRAINED, StreamRuns

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["save_stream_figures"]

_LINES = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_STYLES = (("o", "-"), ("s", "--"), ("^", "-."))  # where methods are more than the colours
_PERIOD = "period (shaded: those of the base model)"
_GREY = "#8a8a8a"


def save_stream_figures(runs: StreamRuns, stem: str, directory: Path) -> dict[str, Path]:
    """Draw a stream: accuracy by period after the last update, and after each.

    Args:
        runs: What it has come to.
        stem: What the names of the pictures begin with.
        directory: Where the pictures go, each as PNG and SVG.

    Returns:
        The PNG files, as ``last_update`` and ``each_update``.
    """
    from matplotlib import rc_context  # noqa: PLC0415

    saved = {}
    for name, draw in (("last_update", _draw_last), ("each_update", _draw_each)):
        paths = [directory / f"{stem}_{name}.{suffix}" for suffix in ("png", "svg")]
        with rc_context({"text.parse_math": False}):  # a task's name may hold dollar signs
            save_figure(draw(runs), paths)
        saved[name] = paths[0]
    return saved


def _draw_last(runs: StreamRuns) -> Figure:
    """One line for each method, labelled at its end."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    height = max(4.5, 1.6 + 0.24 * len(runs.names))
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots()
    numbers = range(1, runs.periods + 1)
    ends: dict[str, tuple[float, str]] = {}
    for name, style in ((FROZEN, ":"), (RETRAINED, "--")):
        values = runs.after(name, runs.periods)
        axes.plot(numbers, values, style, color=_GREY, linewidth=2.5)
        ends[name] = (values[-1], _GREY)
    for index, name in enumerate(runs.methods):
        colour = _LINES[index % len(_LINES)]
        marker, dashes = _STYLES[index // len(_LINES) % len(_STYLES)]
        values = runs.after(name, runs.periods)
        axes.plot(numbers, values, dashes, marker=marker, color=colour, markersize=5)
        ends[name] = (values[-1], colour)
    axes.set_title(f"{runs.task} after the update on period {runs.periods}", fontsize=11)
    axes.set_xlabel(_PERIOD)
    axes.set_ylabel("test accuracy (%)")
    _mark_periods(runs, axes)
    _label_ends(axes, runs.periods, ends)
    return figure


def _label_ends(axes: Axes, last: int, ends: Mapping[str, tuple[float, str]]) -> None:
    """Write names beside the ends of lines, apart from each other."""
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)  # labels must not move it
    names = sorted(ends, key=lambda name: ends[name][0])
    gap = (high - low) / max(len(names), 24)
    places = _spread_out([ends[name][0] for name in names], gap, low, high)
    for name, place in zip(names, places, strict=True):
        value, colour = ends[name]
        axes.annotate(
            f"{name}  {value:.1f}",
            (last, value),
            (1.06, place),
            textcoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
            color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "relpos": (0, 0.5)},
            annotation_clip=False,
        )


def _spread_out(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move ascending values as little as need be for a gap between them, within bounds."""
    # Neighbours that are too close become one group, spaced evenly around its members' mean; the
    # bounds leave room for all, so that a group can always be moved inside.
    groups: list[list[float]] = []

    def middle(group: Sequence[float]) -> float:
        half = gap * (len(group) - 1) / 2
        return min(max(fmean(group), low + half), high - half)

    for value in values:
        groups.append([value])
        while len(groups) > 1:
            room = gap * (len(groups[-2]) + len(groups[-1])) / 2
            if middle(groups[-1]) - middle(groups[-2]) >= room:
                break
            groups[-2:] = [groups[-2] + groups[-1]]
    return [
        middle(group) + gap * (index - (len(group) - 1) / 2)
        for group in groups
        for index in range(len(group))
    ]


def _draw_each(runs: StreamRuns) -> Figure:
    """One panel for each method, one line for each update, the newest the darkest."""
    from matplotlib import colormaps  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    names = [*runs.methods, RETRAINED]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(max(2.6 * columns, 6), 2.2 * rows + 1), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    numbers, updates = range(1, runs.periods + 1), runs.updates
    for axes, name in zip(panels, names, strict=False):
        frozen = runs.after(FROZEN, runs.periods)
        axes.plot(numbers, frozen, ":", color=_GREY, linewidth=2, label="base model, frozen")
        for index, update in enumerate(updates):
            shade = colormaps["viridis_r"](0.15 + 0.8 * index / max(len(updates) - 1, 1))
            axes.plot(
                numbers,
                runs.after(name, update),
                "o-",
                markevery=[update - 1],
                color=shade,
                label=f"after period {update}",
            )
        axes.set_title(name, fontsize=10)
        axes.tick_params(labelsize=8)
        _mark_periods(runs, axes)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    for axes in panels[max(len(names) - columns, 0) : len(names)]:
        axes.tick_params(labelbottom=True)  # there may be no panel below
    figure.supxlabel(_PERIOD, fontsize=10)
    figure.supylabel("test accuracy (%)", fontsize=10)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=min(len(labels), 5 if columns > 2 else 3),
        frameon=False,
        title=f"{runs.task}: accuracy by period after each update (dot: the period just learnt)",
    )
    return figure


def _mark_periods(runs: StreamRuns, axes: Axes) -> None:
    """Tell the base periods from those of the updates."""
    axes.set_xticks(range(1, runs.periods + 1))
    axes.axvspan(0.75, runs.base + 0.25, color="#efefef", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
