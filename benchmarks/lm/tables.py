"""Make results.md and the pictures of this folder from its results files alone.

python benchmarks/lm/tables.py
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from laboratory.ledger import read_ledger
from laboratory.points import Point

HERE = Path(__file__).parent
Records = Mapping[Point, Mapping[str, Any]]
COLUMNS = (
    "number",
    "method",
    "seeds",
    "general cross entropy",
    "rise prevented",
    "LAMBADA",
    "PIQA",
    "ARC",
    "new cross entropy",
    "against none",
    "answers",
    "meter",
    "changed",
    "time of a step",
)
MEASURES = {
    "cross_entropy": "general cross entropy",
    "lambada": "LAMBADA",
    "piqa": "PIQA",
    "piqa_loss": "PIQA, loss",
    "arc_easy": "ARC",
    "arc_easy_loss": "ARC, loss",
}
"""What is measured of general ability, and its label; what is lost grows with a loss alone."""

_LITTLE = 0.02
"""Nats of the new task that a method may cost."""
_COLORS = {"KFC and probes": "C3", "KFC or probes": "C1", "rivals": "C0", "plain, anchor": "0.2"}


class Row:
    """A method's means over its seeds.

    Args:
        number: Of the row, by which the picture names it.
        method: Its name.
        runs: Of each seed what the run, plain fine-tuning and the anchor came to.
    """

    def __init__(self, number: int, method: str, runs: Sequence[tuple[Any, Any, Any]]) -> None:
        self.number, self.method, self.runs = number, method, runs

    def mean(self, of: Callable[[Any], float]) -> float:
        """Return the mean over seeds.

        Args:
            of: From a record to a number.
        """
        return fmean(of(run) for run, _, _ in self.runs)

    @property
    def general(self) -> float:
        """Cross entropy of general texts, in nats."""
        return self.mean(lambda run: run["general"]["cross_entropy"])

    @property
    def new(self) -> float:
        """Cross entropy of the new task's test texts less that of plain fine-tuning, in nats."""
        return fmean(
            run["new"]["cross_entropy"] - none["new"]["cross_entropy"] for run, none, _ in self.runs
        )

    @property
    def prevented(self) -> float:
        """Share of plain fine-tuning's rise of the general cross entropy that there is not."""
        rises = [
            [own["general"]["cross_entropy"] - anchor["general"]["cross_entropy"] for own in pair]
            for *pair, anchor in self.runs
        ]
        return 1 - fmean(own for own, _ in rises) / fmean(plain for _, plain in rises)

    @property
    def time(self) -> float | None:
        """CPU seconds of a step over plain fine-tuning's, of the seeds that have them; else None.

        What is not trained has none, nor has what ran on another processor than plain fine-tuning.
        """
        times = [
            [own.get("training", {}).get("cpu_seconds_per_step") for own in (run, none)]
            for run, none, _ in self.runs
        ]
        ratios = [own / plain for own, plain in times if own and plain]
        return fmean(ratios) if ratios else None

    def cells(self) -> dict[str, str]:
        """Return the cells of the table."""
        is_none, time = self.method == "none", self.time
        return {
            "number": str(self.number),
            "method": f"`{self.method}`",
            "seeds": str(len(self.runs)),
            "general cross entropy": f"{self.general:.3f}",
            "rise prevented": "-" if is_none else f"{self.prevented:.0%}",
            **{label: self._share(label) for label in ("LAMBADA", "PIQA", "ARC")},
            "new cross entropy": f"{self.mean(lambda run: run['new']['cross_entropy']):.3f}",
            "against none": "-" if is_none else f"{self.new:+.3f}",
            "answers": f"{self.mean(lambda run: run['new'].get('answers', math.nan)):.1%}",
            "meter": f"{self.mean(lambda run: run['meter']['kl']):.3f}",
            "changed": f"{self.mean(lambda run: run['meter']['changed']):.1%}",
            "time of a step": "-" if time is None else f"{time:.2f} x",
        }

    def _share(self, label: str) -> str:
        """The share of questions that are answered right, or a dash."""
        name = next(name for name, own in MEASURES.items() if own == label)
        if not all(name in run["general"] for run, _, _ in self.runs):
            return "-"
        return f"{self.mean(lambda run: run['general'][name]):.0%}"


def rows_of(records: Records) -> list[Row]:
    """Return a row for each method in the order run.

    Args:
        records: Of one results file.
    """
    anchors = {p.seed: r for p, r in records.items() if len(p.tasks) == 1}
    plain = {p.seed: r for p, r in records.items() if p.method == "none"}
    runs: dict[str, list[tuple[Any, Any, Any]]] = {}
    for point, record in records.items():
        if len(point.tasks) == 2 and point.seed in plain:
            three = record, plain[point.seed], anchors[point.seed]
            runs.setdefault(point.method, []).append(three)
    return [Row(number, method, of) for number, (method, of) in enumerate(runs.items(), 1)]


def section(name: str, settings: Mapping[str, Any], records: Records) -> str:
    """Return the part of the page that tells one results file.

    Args:
        name: Of the domain.
        settings: Of the file.
        records: Its runs.
    """
    anchor = [record for point, record in records.items() if len(point.tasks) == 1]
    before = {
        part: fmean(record[part]["cross_entropy"] for record in anchor)
        for part in ("general", "new")
    }
    rows = rows_of(records)
    plain = next(row for row in rows if row.method == "none")
    questions, asked = settings["choices"], settings["answers"]
    columns = [column for column in COLUMNS if asked or column != "answers"]
    before_answers = ""
    if asked:
        right = fmean(record["new"]["answers"] for record in anchor)
        before_answers = f" Of up to {asked} questions the anchor answers {right:.1%} rightly."
    lines = [
        f"## {name}",
        "",
        f"{settings['steps']} steps of {settings['batch_size']} rows of {settings['length']} "
        f"tokens, learning rate {settings['learning_rate']:g}. The anchor: general cross entropy "
        f"{before['general']:.3f}, LAMBADA {fmean(r['general']['lambada'] for r in anchor):.0%}, "
        f"new texts {before['new']:.3f}. Plain fine-tuning raises the general cross entropy by "
        f"{plain.general / before['general'] - 1:.0%}. LAMBADA has {settings['lambada'] or 5153} "
        f"texts here{f', PIQA and ARC {questions} questions each' if questions else ''}; "
        f"{settings['sampled_texts']} texts are sampled, {settings['curvature_texts']} of them for "
        f"the curvature.{before_answers}",
        "",
        f"| {' | '.join(columns)} |",
        "|---:|---|" + "---:|" * (len(columns) - 2),
    ]
    for row in rows:
        cells = row.cells()
        lines.append(f"| {' | '.join(cells[column] for column in columns)} |")
    return "\n".join(lines)


def meter(files: Mapping[str, Records]) -> str:
    """Return the part of the page that tells how well the meter foretells what is lost.

    Args:
        files: Results files by name: the runs of each have the meter's texts in common.
    """
    lines = [
        "## The meter",
        "",
        "Rank correlation of the meter with what is measured, over the models of a file, the "
        "anchor among them. A share of right answers falls where a loss rises.",
        "",
        f"| file | models | {' | '.join(MEASURES.values())} |",
        "|---|" + "---:|" * (1 + len(MEASURES)),
    ]
    for name, records in files.items():
        runs = list(records.values())
        if len(runs) < 5:  # two models have a rank correlation of 1
            continue
        cells = [str(len(runs))]
        for measure in MEASURES:
            if any(measure not in run["general"] for run in runs):
                cells.append("-")
                continue
            pairs = [(run["meter"]["kl"], run["general"][measure]) for run in runs]
            cells.append(f"{spearmanr(pairs).statistic:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(records: Records, path: Path) -> None:
    """Draw what was kept against what was learnt, and the meter against what was lost.

    Points of methods have the numbers of their rows.

    Args:
        records: Of one results file.
        path: Of the picture.
    """
    with rc_context({"svg.hashsalt": "hf_kfc"}):  # the same file of the same results
        figure = Figure(figsize=(12, 4.2), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        rows = rows_of(records)
        for row in rows:
            words = row.mean(lambda run: run["general"]["lambada"])
            for axes, share in ((left, row.prevented), (middle, words)):
                place = row.new, 100 * share
                axes.scatter(*place, color=_color(row.method), s=90, edgecolors="white")
                axes.text(
                    *place,
                    str(row.number),
                    fontsize=6,
                    color="white",
                    ha="center",
                    va="center_baseline",
                )
        for axes in (left, middle):
            axes.locator_params(axis="x", nbins=5)
            axes.axvline(_LITTLE, color="0.8", zorder=0)
            axes.set_xlabel("cross entropy of new texts, less that of none (nats)")
        left.axhline(95, color="0.8", zorder=0)
        left.set_ylabel("rise of the general cross entropy prevented (%)")
        anchors = [record for point, record in records.items() if len(point.tasks) == 1]
        before = fmean(record["general"]["lambada"] for record in anchors)
        middle.axhline(100 * before, color="0.2", linewidth=1, linestyle=":", zorder=0)
        middle.set_ylabel("last words (%); dotted: the anchor's")
        for label, color in _COLORS.items():
            left.scatter([], [], color=color, s=25, label=label)
        figure.legend(fontsize=7, loc="outside lower center", ncols=len(_COLORS))
        for point, record in records.items():
            place = record["meter"]["kl"], record["general"]["cross_entropy"]
            right.scatter(*place, color=_color(point.method), s=25)
        right.set_xlabel("meter: KL on sampled texts (nats)")
        right.set_ylabel("general cross entropy (nats)")
        figure.savefig(path, metadata={"Date": None})


def _color(method: str) -> str:
    """That of what is ours, of a rival, or of neither."""
    ours = ("kfc" in method) + ("probes" in method)
    if ours:
        return _COLORS["KFC and probes" if ours == 2 else "KFC or probes"]
    return _COLORS["plain, anchor" if method in ("none", "individual") else "rivals"]


def main() -> None:
    """Write the page and the pictures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=HERE, help="folder of results files")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of what is made")
    arguments = parser.parse_args()
    parts = ["# A language model learns a domain\n\nMade by `tables.py`; [README.md](README.md)."]
    files: dict[str, Records] = {}
    for path in sorted(arguments.results.glob("*.jsonl")):
        header, records = read_ledger(path)
        draw(records, arguments.output / f"{path.stem}.svg")
        files[path.stem] = records
        parts += [section(path.stem, header["settings"], records), f"![Frontier]({path.stem}.svg)"]
    parts.append(meter(files))
    (arguments.output / "results.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
