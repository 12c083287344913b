"""Pictures of the report, drawn from its data frames."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .groups import COLOURS, group_of
from .measures import Measures, Summary
from .tables import PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "curve_names",
    "new_figure",
    "save_figure",
    "save_frontier_figure",
    "save_summary_figure",
    "save_tradeoff_figure",
]

# Okabe and Ito's colours; a method as in the paper shares the colour of ours, with a broken line.
_CURVES = {
    "l2": ("#E69F00", "-", "^"),
    "ewc": ("#D55E00", "-", "s"),
    "kfc": ("#0072B2", "-", "o"),
    "ekfac": ("#009E73", "-", "D"),
    "paper_ewc": ("#D55E00", ":", "s"),
    "paper_kfc": ("#0072B2", ":", "o"),
    "data_free": ("#000000", "--", "v"),
}
_OTHERS = (("#CC79A7", "P"), ("#56B4E9", "X"), ("#b8a600", "*"), ("#8c564b", "<"))
_WIDTH = 9.0  # inches: 900 pixels at the 100 dots of a browser's inch


def curve_names(measures: Measures) -> list[list[str]]:
    """Return the methods with a strength: alone, and in combinations beside KFC."""
    names = [
        name
        for name in measures.methods
        if any(measures.curve(chain, name).strength.any() for chain in measures.chains)
    ]
    alone = [name for name in names if "+" not in name]
    joined = [name for name in names if "+" in name]
    beside = [name for name in alone if name == "kfc"]
    return [own for own in (alone, joined and [*beside, *joined]) if own]


def save_tradeoff_figure(measures: Measures, names: Sequence[str], paths: Sequence[Path]) -> None:
    """Draw what each strength keeps of the old task against what it costs the new one.

    Args:
        measures: Of one model at tier 2.
        names: Methods with a strength, as of :func:`curve_names`.
        paths: PNG or SVG files.
    """
    rows = math.ceil(len(measures.chains) / 3)
    figure = new_figure(2.8 * rows + 0.9)
    grid = figure.subplots(rows, 3, squeeze=False).flat
    for place, (axes, chain) in enumerate(zip(grid, measures.chains, strict=False)):
        _draw_curves(axes, measures, chain, names)
        if place % 3 == 0:
            axes.set_ylabel("old task: change (%)")
        if place >= len(measures.chains) - 3:
            axes.set_xlabel("new task: points above no method")
    for axes in list(grid)[len(measures.chains) :]:
        axes.set_visible(False)
    handles = [_curve_handle(name, names) for name in names] + _marks()
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    save_figure(figure, paths)


def save_frontier_figure(measures: Measures, paths: Sequence[Path]) -> None:
    """Draw what each method keeps of the old tasks against what it costs the new one.

    Args:
        measures: Of one model at one tier.
        paths: PNG or SVG files.
    """
    figure = new_figure(4.6)
    axes = figure.subplots()
    drawn: dict[str, tuple[float, float]] = {}
    for name in measures.methods:
        own = measures.summary(name)
        x, y = (0.0, 0.0) if name == "none" else (own.points, own.reduction)
        if math.isnan(x + y):
            continue
        error = 0.0 if math.isnan(own.error) or name == "none" else own.error
        axes.errorbar(
            x, y, xerr=error, fmt="o", color=COLOURS[group_of(name)], ms=6, elinewidth=0.8
        )
        drawn[name] = x, y
    axes.axvline(0, color="#999999", linewidth=0.8)
    axes.axhline(100, color="#999999", linewidth=0.8, linestyle="--")
    _set_points_axis(axes, [0.0, *(x for x, _ in drawn.values())])
    axes.set_xlabel("new task: points above no method")
    axes.set_ylabel("old tasks: CF reduction (%)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.draw_without_rendering()  # lays the axes out
    _name_points(axes, drawn)
    save_figure(figure, paths)


_ALIGNED = {8: "left", -8: "right", 0: "center"}
"""How a name lies that many points across from its own."""


def _name_points(axes: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Write the name of each point beside it, at the nearest free place within the axes.

    Args:
        axes: Laid out as they will be drawn.
        points: By name.
    """
    from matplotlib.transforms import Bbox  # noqa: PLC0415

    places = [up for step in range(4, 70, 10) for up in (step, -step - 7)]
    centres = axes.transData.transform(list(points.values()))
    taken = [Bbox([centre - 5, centre + 5]) for centre in centres]
    for name, point in points.items():
        for up, across in itertools.product(places, _ALIGNED):
            label = axes.annotate(
                name,
                point,
                (across, up),
                textcoords="offset points",
                fontsize=8,
                horizontalalignment=_ALIGNED[across],
            )
            label.set_in_layout(False)
            box = label.get_window_extent()
            is_inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and box.y1 <= axes.bbox.y1
            if is_inside and not any(box.overlaps(other) for other in taken):
                break
            label.remove()
        else:
            axes.add_artist(label)
        taken.append(box)


def save_summary_figure(measures: Measures, paths: Sequence[Path]) -> bool:
    """Draw the CF reduction of each method beside what it costs the new task.

    Args:
        measures: Of one model at one tier.
        paths: PNG or SVG files.

    Returns:
        Whether there was a method to draw.
    """
    names = [name for name in measures.methods if name != "none"]
    own = [measures.summary(name) for name in [*names, "combined"]]
    own = [summary for summary in own if not math.isnan(summary.reduction)]
    if not own:
        return False
    figure = new_figure(0.27 * len(own) + 1.5)
    left, right = figure.subplots(1, 2, sharey=True)
    colours = [COLOURS[group_of(summary.method)] for summary in own]
    places = range(len(own))
    left.barh(places, [summary.reduction for summary in own], color=colours)
    _label_bars(left, own, paper=measures.tier == 2)
    errors = [0.0 if math.isnan(summary.error) else summary.error for summary in own]
    right.barh(
        places,
        [summary.points for summary in own],
        xerr=errors,
        color=colours,
        error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#333333"},
    )
    right.axvline(-1, color="#333333", linestyle="--", linewidth=1)
    left.set_yticks(places, [summary.method for summary in own], fontsize=9)
    left.invert_yaxis()
    left.set_xlabel("CF reduction (%)")
    right.set_xlabel("new task: points above no method (dashed: \N{MINUS SIGN}1)")
    for axes in (left, right):
        axes.axvline(0, color="#333333", linewidth=0.8)
        axes.margins(x=0.12, y=0.01)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#e4e4e4")
        axes.set_axisbelow(True)
    _group_legend(figure, own, measures.tier == 2)
    save_figure(figure, paths)
    return True


def _draw_curves(axes: Axes, measures: Measures, chain: str, names: Sequence[str]) -> None:
    axes.axvspan(-1, 1e4, color="#f0f4f8", zorder=0)  # what the rule allows to choose from
    axes.axhline(0, color="#999999", linewidth=0.8)
    none = measures.curve(chain, "none")
    axes.plot(none.points, none.change, "X", color="#7a7a7a", ms=9)
    drawn = list(none.points)
    for name in names:
        curve = measures.curve(chain, name).dropna(subset="change")
        colour, line, marker = _style(name, names)
        axes.plot(
            *(curve.points, curve.change, line),
            marker=marker,
            color=colour,
            ms=4.5,
            lw=1.2,
            alpha=0.9,
        )
        ringed = curve[curve.chosen]
        axes.plot(ringed.points, ringed.change, "o", ms=11, mfc="none", mec=colour)
        drawn += list(curve.points)
    axes.set_title(chain, fontsize=10)
    _set_points_axis(axes, drawn)
    axes.tick_params(labelsize=9)
    axes.margins(y=0.08)
    axes.spines[["top", "right"]].set_visible(False)


def _set_points_axis(axes: Axes, points: Sequence[float]) -> None:
    """Show a few points around 0 in full, and losses of the whole task in little room."""
    least, most = min(points, default=0.0), max(points, default=0.0)
    axes.set_xscale("symlog", linthresh=4, linscale=1.5)
    left, right = min(-2.5, 1.25 * least), max(1.5, most + 0.6, 1.5 * most)
    axes.set_xlim(left, right)
    ticks = [t for t in (-40, -10, -4, -2, 0, 2, 4, 10, 40) if left <= t <= right]
    axes.set_xticks(ticks, [f"{t}".replace("-", "\N{MINUS SIGN}") for t in ticks])
    axes.minorticks_off()


def _style(name: str, names: Sequence[str]) -> tuple[str, Any, str]:
    if name in _CURVES:
        return _CURVES[name]
    others = [own for own in names if own not in _CURVES]
    place = others.index(name)
    colour, marker = _OTHERS[place % len(_OTHERS)]
    return colour, ("-.", "--", ":", "-")[place // len(_OTHERS) % 4], marker


def _curve_handle(name: str, names: Sequence[str]) -> Any:
    from matplotlib.lines import Line2D  # noqa: PLC0415

    colour, line, marker = _style(name, names)
    return Line2D([], [], color=colour, linestyle=line, marker=marker, ms=5, label=name)


def _marks() -> list[Any]:
    from matplotlib.lines import Line2D  # noqa: PLC0415
    from matplotlib.patches import Patch  # noqa: PLC0415

    return [
        Line2D([], [], color="#7a7a7a", linestyle="", marker="X", ms=9, label="no method"),
        Line2D(
            [], [], color="#333333", linestyle="", marker="o", ms=11, mfc="none", label="chosen"
        ),
        Patch(color="#e4ebf2", label="within 1 point"),
    ]


def _label_bars(axes: Axes, own: Sequence[Summary], paper: bool) -> None:
    """Write the values at the bars' ends, beside the paper's marks where those are in the way."""
    room = 0.08 * max(abs(summary.reduction) for summary in own)
    for place, summary in enumerate(own):
        value, end = summary.reduction, max(summary.reduction, 0.0)
        if paper and summary.method in PAPER:
            mark = PAPER[summary.method]
            axes.plot([mark], [place], "D", color="white", mec="black", ms=6, zorder=5)
            if end - room / 2 < mark < end + 2 * room:
                end = mark + room / 4
        axes.annotate(
            f"{value:.0f}".replace("-", "\N{MINUS SIGN}"),
            (end, place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )


def _group_legend(figure: Figure, own: Sequence[Summary], paper: bool) -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415
    from matplotlib.patches import Patch  # noqa: PLC0415

    groups = dict.fromkeys(group_of(summary.method) for summary in own)
    handles: list[Any] = [Patch(color=COLOURS[group], label=group) for group in groups]
    if paper and any(summary.method in PAPER for summary in own):
        label = "McInerney et al. 2021"
        handles.append(
            Line2D([], [], linestyle="", marker="D", mfc="white", mec="black", ms=6, label=label)
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)


def new_figure(height: float) -> Figure:
    """Make a picture as wide as a page.

    Args:
        height: In inches.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415

    return Figure(figsize=(_WIDTH, height), layout="constrained")


def save_figure(figure: Figure, paths: Sequence[Path]) -> None:
    """Write a picture, the same bytes for the same picture.

    Args:
        figure: The picture.
        paths: PNG or SVG files.
    """
    from matplotlib import rc_context  # noqa: PLC0415

    # Without the date and with fixed names inside, equal results make equal files.
    with rc_context({"text.parse_math": False, "svg.hashsalt": "hf_kfc"}):
        for path in paths:
            metadata = {"Date": None} if path.suffix == ".svg" else {}
            figure.savefig(path, dpi=150, metadata=metadata)
