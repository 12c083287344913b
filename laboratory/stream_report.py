"""The table and the pictures of a stream of periods, from its results alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from hf_kfc.errors import ConsolidationError

from .ledger import read_ledger
from .stream import FROZEN, RETRAINED, StreamPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["save_stream_figures", "stream_table"]

_PERIOD = "period (shaded: those of the base model)"
_GREY = "#8a8a8a"
# Okabe and Ito's colours, which the colour-blind tell apart, without their pale yellow; where
# methods are more than these, markers and dashes tell the next ones apart.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
_STYLES = (("o", "-"), ("s", "--"), ("^", "-."))


@dataclass(frozen=True)
class _Run:
    """A method's chain of updates in one seed: test accuracies of all periods after each."""

    seed: int
    multiple: float | None
    accuracies: Mapping[int, Sequence[float]]


@dataclass(frozen=True)
class _Results:
    """What a stream has come to.

    Args:
        path: Its file, for messages.
        task: Name of the task.
        periods: T.
        base: k, the periods that the base model has learnt.
        runs: By method, the references first: one for each seed in which it is finished.
        unfinished: Methods that are so in no seed.
    """

    path: Path
    task: str
    periods: int
    base: int
    runs: Mapping[str, Sequence[_Run]]
    unfinished: Sequence[str]

    @classmethod
    def read(cls, path: Path) -> _Results:
        header, records = read_ledger(path, StreamPoint)
        try:
            task, periods, base = (
                header["settings"][name] for name in ("task", "periods", "base_periods")
            )
        except (KeyError, TypeError) as error:
            raise ConsolidationError(
                f"{path} holds no stream of periods ({type(error).__name__}: {error}); give the "
                "results of recipes/stream.py"
            ) from error
        runs: dict[str, list[_Run]] = {}
        for point in records:
            own = runs.setdefault(point.method, [])
            if point.period == periods:
                chain = _chain(records, point, base, periods)
                own.append(_Run(point.seed, point.multiple, chain))
        for name in (FROZEN, RETRAINED):
            if not runs.get(name):
                raise ConsolidationError(
                    f"{path} has no finished run of '{name}', which others are held against; run "
                    "the stream again, it goes on"
                )
        finished = {name: own for name, own in runs.items() if own}
        return cls(path, task, periods, base, finished, [n for n in runs if n not in finished])

    @property
    def updates(self) -> range:
        """The periods that were learnt one at a time."""
        return range(self.base + 1, self.periods + 1)

    @property
    def methods(self) -> list[str]:
        """All but the references."""
        return [name for name in self.runs if name not in (FROZEN, RETRAINED)]

    def after(self, method: str, update: int) -> list[float]:
        """Accuracy on each period after an update in percent, mean over seeds."""
        rows = [run.accuracies[update] for run in self.runs[method]]
        return [100 * fmean(column) for column in zip(*rows, strict=True)]

    def reference(self, name: str, seed: int) -> _Run:
        """The run of a reference in a seed; it was done before the methods."""
        return next(run for run in self.runs[name] if run.seed == seed)


def _chain(
    records: Mapping[StreamPoint, Mapping[str, Any]], last: StreamPoint, base: int, periods: int
) -> dict[int, Sequence[float]]:
    """Test accuracies after each update that a last one goes back to."""
    return {
        point.period: record["test"]
        for point, record in records.items()
        if (point.seed, point.method, point.multiple) == (last.seed, last.method, last.multiple)
        and base < point.period <= periods
    }


def stream_table(path: Path) -> str:
    """Make the Markdown table of a stream, on test splits.

    Args:
        path: File that :func:`~laboratory.stream.run_stream` wrote; of a stream that is
            not finished, the methods that are.

    Raises:
        ConsolidationError: It is not such a file, or a reference is not finished.
    """
    results = _Results.read(path)
    lines = [
        "| method | λ / Bayes | past periods | newest | all | all against frozen "
        "| all against retrained | next period |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *(_row(results, name) for name in results.runs),
        "",
        *_footnotes(results),
    ]
    return "\n".join(lines)


def _row(results: _Results, name: str) -> str:
    runs, last = results.runs[name], results.periods
    ends = [run.accuracies[last] for run in runs]
    upcoming = [[run.accuracies[update][update] for update in results.updates[:-1]] for run in runs]
    against = {
        to: [
            100 * (fmean(end) - fmean(results.reference(to, run.seed).accuracies[last]))
            for run, end in zip(runs, ends, strict=True)
        ]
        for to in (FROZEN, RETRAINED)
    }
    cells = [
        name,
        ", ".join(f"{m:g}" for m in dict.fromkeys(r.multiple for r in runs) if m is not None),
        _spread([100 * fmean(end[:-1]) for end in ends]),
        _spread([100 * end[-1] for end in ends]),
        _spread([100 * fmean(end) for end in ends]),
        *("" if name == to else _spread(values, "+") for to, values in against.items()),
        _spread([100 * fmean(one) for one in upcoming]) if all(upcoming) else "",
    ]
    return f"| {' | '.join(cells)} |"


def _footnotes(results: _Results) -> Iterator[str]:
    seeds = {name: len(runs) for name, runs in results.runs.items()}
    most = max(seeds.values())
    over = f", mean ± standard deviation over {most} seeds" if most > 1 else ""
    yield (
        f"Test accuracy (%) after the last update of {results.task} in {results.periods} periods, "
        f"the first {results.base} of them learnt at once{over}; 'past periods' is the mean over "
        f"periods 1 to {results.periods - 1}, 'all' over all {results.periods}, each period "
        "counting alike, and the changes of 'all' are in points."
    )
    yield (
        "'next period' is the mean, over the updates but the last, of the accuracy on the period "
        "that is learnt only afterwards."
    )
    yield (
        "'λ / Bayes' multiplies N_old / (2 N_new), for l2 it is λ itself; 'frozen' is the base "
        "model, 'retrained' a fresh model that learns all periods so far."
    )
    if fewer := [f"{name} ({n})" for name, n in seeds.items() if n < most]:
        yield f"Finished in fewer seeds: {', '.join(fewer)}."
    if results.unfinished:
        yield f"Not finished, and left out: {', '.join(results.unfinished)}."


def _spread(values: Sequence[float], sign: str = "") -> str:
    deviation = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{fmean(values):{sign}.1f}{deviation}"


def save_stream_figures(path: Path, directory: Path) -> list[Path]:
    """Draw a stream: accuracy by period after the last update, and after each.

    Args:
        path: File that :func:`~laboratory.stream.run_stream` wrote.
        directory: Where the pictures go, named after the file; made if it is not there.

    Returns:
        The pictures, each as PNG and SVG.

    Raises:
        ConsolidationError: It is not such a file, or a reference is not finished.
    """
    from matplotlib import rc_context  # noqa: PLC0415

    results = _Results.read(path)
    directory.mkdir(parents=True, exist_ok=True)
    saved = []
    with rc_context({"text.parse_math": False}):  # a name may hold dollar signs
        for name, figure in (
            ("last_update", _draw_last(results)),
            ("each_update", _draw_each(results)),
        ):
            for suffix in ("png", "svg"):
                saved.append(directory / f"{path.stem}_{name}.{suffix}")
                figure.savefig(saved[-1], dpi=150)
    return saved


def _draw_last(results: _Results) -> Figure:
    """One line for each method, labelled at its end."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    height = max(4.5, 1.6 + 0.24 * len(results.runs))
    figure = Figure(figsize=(9, height), layout="constrained")
    axes = figure.subplots()
    numbers = range(1, results.periods + 1)
    ends: dict[str, tuple[float, str]] = {}
    for name, style in ((FROZEN, ":"), (RETRAINED, "--")):
        values = results.after(name, results.periods)
        axes.plot(numbers, values, style, color=_GREY, linewidth=2.5)
        ends[name] = (values[-1], _GREY)
    for index, name in enumerate(results.methods):
        colour = _COLOURS[index % len(_COLOURS)]
        marker, dashes = _STYLES[index // len(_COLOURS) % len(_STYLES)]
        values = results.after(name, results.periods)
        axes.plot(numbers, values, dashes, marker=marker, color=colour, markersize=5)
        ends[name] = (values[-1], colour)
    axes.set_title(f"{results.task} after the update on period {results.periods}", fontsize=11)
    axes.set_xlabel(_PERIOD)
    axes.set_ylabel("test accuracy (%)")
    _mark_periods(results, axes)
    _label_ends(axes, results.periods, ends)
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


def _draw_each(results: _Results) -> Figure:
    """One panel for each method, one line for each update, the newest the darkest."""
    from matplotlib import colormaps  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    names = [*results.methods, RETRAINED]
    columns = min(4, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(max(2.6 * columns, 6), 2.2 * rows + 1), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat)
    numbers, updates = range(1, results.periods + 1), results.updates
    for axes, name in zip(panels, names, strict=False):
        frozen = results.after(FROZEN, results.periods)
        axes.plot(numbers, frozen, ":", color=_GREY, linewidth=2, label="base model, frozen")
        for index, update in enumerate(updates):
            shade = colormaps["viridis_r"](0.15 + 0.8 * index / max(len(updates) - 1, 1))
            axes.plot(
                numbers,
                results.after(name, update),
                "o-",
                markevery=[update - 1],
                color=shade,
                label=f"after period {update}",
            )
        axes.set_title(name, fontsize=10)
        axes.tick_params(labelsize=8)
        _mark_periods(results, axes)
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
        title=f"{results.task}: accuracy by period after each update (dot: the period just learnt)",
    )
    return figure


def _mark_periods(results: _Results, axes: Axes) -> None:
    """Tell the base periods from those of the updates."""
    axes.set_xticks(range(1, results.periods + 1))
    axes.axvspan(0.75, results.base + 0.25, color="#efefef", zorder=0)
    axes.spines[["top", "right"]].set_visible(False)
