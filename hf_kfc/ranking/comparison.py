"""Methods side by side: what each keeps of the old tasks and reaches on the new one."""

from __future__ import annotations

import json
import math
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Self

from ..errors import ConsolidationError
from .metrics import cf_reduction, relative_change
from .scoring import Regressions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "FIGURE_NAME",
    "METHODS",
    "RESULTS_NAME",
    "RESULTS_TABLE",
    "Comparison",
    "Outcome",
    "Remembered",
    "command",
    "is_finished",
    "method_name",
    "require_matplotlib",
    "versions",
]

RESULTS_NAME = "results.json"
RESULTS_TABLE = "results.md"
FIGURE_NAME = "forgetting.png"

METHODS: Mapping[str, str] = {
    "ewc": "diagonal",
    "ekfac": "kronecker_eigen",
    "kfc": "kronecker",
}
"""What tables call the penalty with each kind of curvature."""


@dataclass(frozen=True)
class Outcome:
    """What one method did to the old tasks, and for the new one.

    Args:
        method: Name of the method; ``none`` is what the others are held against.
        strengths: λ of each of its priors; empty where there is no penalty.
        damping: Relative damping; None where there is no penalty.
        old: Accuracy on the old task after learning the new one, of several tasks its mean; None
            if it was not measured.
        new: Accuracy on the new task.
        old_by_task: Accuracy on each old task.
        forgotten: Nats from what the old models said of the probes held out, the mean of the old
            tasks; None without probes.
    """

    method: str
    strengths: Sequence[float]
    damping: float | None
    old: float | None
    new: float
    old_by_task: Mapping[str, float] = field(default_factory=dict)
    forgotten: float | None = None

    @classmethod
    def of(cls, method: str, trainer: Any, new: Any, old: Mapping[str, Any]) -> Self:
        """Measure a trained model.

        Args:
            method: Name of the method.
            trainer: Its trainer, with ``compute_metrics``.
            new: Encoded examples of the new task.
            old: Encoded examples of each old task; possibly none.
        """
        accuracy = {
            name: float(trainer.evaluate(examples)["eval_accuracy"])
            for name, examples in old.items()
        }
        strengths = list(getattr(trainer, "strengths", ()))
        history = getattr(getattr(trainer, "state", None), "log_history", [])
        measured = [log["forgetting"] for log in history if "forgetting" in log]
        return cls(
            method,
            strengths,
            trainer.consolidation.damping if strengths else None,
            fmean(accuracy.values()) if accuracy else None,
            float(trainer.evaluate(new)["eval_accuracy"]),
            accuracy,
            measured[-1] if measured else None,
        )


@dataclass(frozen=True)
class Remembered:
    """What is known of an earlier task, from its prior.

    Args:
        task: Its name.
        accuracy: Accuracy when it was learnt; None if the prior does not tell.
        fingerprint: Of the prior.
        source: Where the prior was read from, ``"org/name@sha"``; None if not from the Hub.
    """

    task: str
    accuracy: float | None
    fingerprint: str
    source: str | None

    @classmethod
    def of(cls, prior: Any) -> Self:
        """Say what a :class:`~hf_kfc.ConsolidationPrior` tells of its task.

        Args:
            prior: The prior.
        """
        accuracy = prior.provenance.anchor_metrics.get("accuracy")
        source = str(prior.source) if prior.source else None
        return cls(prior.task, accuracy, prior.fingerprint, source)


@dataclass
class Comparison:
    """Methods side by side on one pair of tasks.

    Args:
        old_task: Name of the old task, or of the old tasks.
        new_task: Name of the new task.
        old_before: Accuracy on the old task before the new one, of several tasks its mean; None
            if it was not measured.
        outcomes: One for each method, in the order of the table.
        settings: Everything needed to repeat it.
        remembered: The earlier tasks that the last method remembers, in the order of its
            strengths.
        regressions: Which mentions of each old task the model of the last method has lost and won.

    Example:
        >>> outcomes = [Outcome("none", [], None, 0.5, 0.64), Outcome("kfc", [5], 0.1, 0.6, 0.62)]
        >>> print(Comparison("articles", "patients", 0.8, outcomes).table())  # doctest: +SKIP
    """

    old_task: str
    new_task: str
    old_before: float | None
    outcomes: list[Outcome] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    remembered: list[Remembered] = field(default_factory=list)
    regressions: dict[str, Regressions] = field(default_factory=dict)

    def change(self, outcome: Outcome) -> float:
        """Return the relative change of the old task in percent.

        NaN where it was not measured, or where there was nothing to forget.
        """
        if not self.old_before or outcome.old is None:
            return math.nan
        return relative_change(self.old_before, outcome.old)

    def reduction(self, outcome: Outcome) -> float:
        """Return the CF reduction; NaN without method ``none`` or where that forgets nothing."""
        plain = [o for o in self.outcomes if o.method == "none"]
        if outcome.method == "none" or not plain:
            return math.nan
        return cf_reduction(self.change(outcome), self.change(plain[0]))

    def table(self) -> str:
        """Return the comparison as a Markdown table, without columns of which nothing is known."""
        columns: dict[str, list[str]] = {
            "method": [o.method for o in self.outcomes],
            "λ": [", ".join(f"{s:.3g}" for s in o.strengths) or "-" for o in self.outcomes],
            "damping": [_number(o.damping, "{:g}") for o in self.outcomes],
            f"{self.old_task} before": [_number(self.old_before, "{:.1%}") for _ in self.outcomes],
            "after": [_number(o.old, "{:.1%}") for o in self.outcomes],
            "change": [_number(self.change(o) / 100, "{:+.1%}") for o in self.outcomes],
            "CF reduction": [_number(self.reduction(o), "{:.0%}") for o in self.outcomes],
            "nats forgotten": [_number(o.forgotten, "{:.3f}") for o in self.outcomes],
            self.new_task: [_number(o.new, "{:.1%}") for o in self.outcomes],
        }
        known = {name: cells for name, cells in columns.items() if set(cells) != {"-"}}
        ruler = ["---", *["---:"] * (len(known) - 1)]
        rows = [list(known), ruler, *map(list, zip(*known.values(), strict=True))]
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)

    def report(self) -> str:
        """Return the table, and under it how many mentions of each old task changed."""
        changes = [f"{name}: {own.summary()}" for name, own in self.regressions.items()]
        return "\n\n".join([self.table(), *changes])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON values, with the command and the versions that made it.

        Of what changed there are the numbers: the mentions themselves are of the old data.
        """
        outcomes = [
            asdict(o) | {"change": _json(self.change(o)), "cf_reduction": _json(self.reduction(o))}
            for o in self.outcomes
        ]
        changes = {
            name: {"lost": len(own.lost), "won": len(own.won), "p_value": own.p_value}
            for name, own in self.regressions.items()
        }
        values = asdict(replace(self, regressions={})) | {"regressions": changes}
        return values | {"outcomes": outcomes, "command": command(), "versions": versions()}

    def save(self, directory: str | Path) -> None:
        """Write ``results.json``, ``results.md`` and, of a measured old task, ``forgetting.png``.

        Of changes, ``regressions.html`` shows the mentions in their context; where there are
        several old tasks, ``regressions-1.html`` and so on, in their order.

        Args:
            directory: An existing folder.

        Raises:
            ConsolidationError: There is a picture to draw and matplotlib is not installed.
        """
        folder = Path(directory)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False)
        (folder / RESULTS_NAME).write_text(text + "\n", encoding="utf-8")
        (folder / RESULTS_TABLE).write_text(self.report() + "\n", encoding="utf-8")
        for number, (name, own) in enumerate(self.regressions.items(), 1):
            page = own.html(f"{name}, after learning {self.new_task}: what changed")
            of_several = f"-{number}" if len(self.regressions) > 1 else ""
            (folder / f"regressions{of_several}.html").write_text(page, encoding="utf-8")
        if self.old_before is not None:
            self.save_figure(folder / FIGURE_NAME)

    def save_figure(self, path: str | Path) -> None:
        """Draw what each method keeps of the old task and reaches on the new one.

        Args:
            path: A PNG or SVG file.

        Raises:
            ConsolidationError: matplotlib is not installed.
        """
        require_matplotlib()
        from matplotlib import rc_context  # noqa: PLC0415
        from matplotlib.figure import Figure  # noqa: PLC0415

        with rc_context({"text.parse_math": False}):  # a name may hold dollar signs
            figure = Figure(figsize=(9, 3.6), layout="constrained")
            old_axes, new_axes = figure.subplots(1, 2)
            old = [100 * (outcome.old or 0.0) for outcome in self.outcomes]
            self._draw_bars(old_axes, old, f"old task: {self.old_task}")
            new = [100 * outcome.new for outcome in self.outcomes]
            self._draw_bars(new_axes, new, f"new task: {self.new_task}")
            if self.old_before is not None:
                before, red = 100 * self.old_before, "#c0392b"
                old_axes.axhline(before, color=red, linestyle="--", linewidth=1.2)
                text = f"before {before:.1f}"
                old_axes.text(-0.45, before, text, color=red, va="bottom", fontsize=9)
                old_axes.set_ylim(0, max(*old, before, 1.0) * 1.15)
            figure.savefig(path, dpi=150)

    def _draw_bars(self, axes: Axes, values: Sequence[float], title: str) -> None:
        names = [outcome.method for outcome in self.outcomes]
        colours = ["#9a9a9a" if name == "none" else "#2f6fb2" for name in names]
        axes.bar_label(axes.bar(names, values, color=colours), fmt="%.1f", padding=2)
        axes.set_title(title, fontsize=11)
        axes.set_ylabel("accuracy afterwards (%)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(y=0.15)


def method_name(priors: Sequence[Any]) -> str:
    """Return what tables call the penalty with some priors, as ``"kfc"`` or ``"kfc + ewc"``.

    Where one of them carries probes, they follow: ``"kfc+probes"``.

    Args:
        priors: Each a :class:`~hf_kfc.ConsolidationPrior`.
    """
    names = {kind: name for name, kind in METHODS.items()} | {"identity": "l2"}
    name = " + ".join(dict.fromkeys(names[prior.provenance.curvature] for prior in priors))
    has_probes = any(prior.probes is not None for prior in priors)
    return f"{name}+probes" if has_probes else name


def is_finished(directory: str | Path, settings: Mapping[str, Any]) -> bool:
    """Whether a folder holds what settings give, so that it only has to be pushed.

    Args:
        directory: Where :meth:`Comparison.save` may have written results.
        settings: Those of the comparison; results of other versions of the libraries do not count.
    """
    try:
        found = json.loads((Path(directory) / RESULTS_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    return (found["settings"], found["versions"]) == (json.loads(json.dumps(settings)), versions())


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


def command() -> str:
    """Return the command line, from the script on, as it can be typed again."""
    script, *words = sys.argv
    return " ".join([script, *map(shlex.quote, words)])


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on."""
    libraries = ("hf_kfc", "torch", "transformers", "datasets", "accelerate")
    return {"python": platform.python_version()} | {name: version(name) for name in libraries}


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or math.isnan(value) else form.format(value)


def _json(value: float) -> float | None:
    return None if math.isnan(value) else value
