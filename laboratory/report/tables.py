"""Tables 1 to 6: the experiment over all permutations."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pandas as pd

from .groups import group_of, in_order
from .measures import Measures, Summary
from .models import Model

__all__ = [
    "PAPER",
    "Table",
    "baseline_table",
    "number",
    "settings_table",
    "signed",
    "strength_table",
    "summary_table",
    "tier_table",
    "with_error",
    "within_a_point",
]

PAPER = {"ewc": 27, "kfc": 51, "paper_ewc": 27, "paper_kfc": 51}
"""CF reductions in percent of McInerney et al. 2021: means of six permutations at tier 2."""

_PART = "†"  # fewer runs than there should be


@dataclass(frozen=True)
class Table:
    """A table whose rows stand in groups.

    Args:
        columns: Of each, what stands above it and its neighbours (may be empty), and its name.
        groups: Rows by the name of their group; an empty name for none.
    """

    columns: Sequence[tuple[str, str]]
    groups: Sequence[tuple[str, Sequence[Sequence[str]]]]

    @property
    def rows(self) -> list[Sequence[str]]:
        """All rows, without the names of their groups."""
        return [row for _, rows in self.groups for row in rows]

    @property
    def names(self) -> list[str]:
        """The columns' names, each with what stands above it."""
        return [f"{above}: {name}" if above else name for above, name in self.columns]

    @property
    def heads(self) -> list[tuple[str, int]]:
        """What stands above the columns, and over how many of them; nothing if nothing does."""
        spans = [(above, len(list(own))) for above, own in groupby(self.columns, lambda c: c[0])]
        return spans if any(above for above, _ in spans) else []


def baseline_table(models: Sequence[Model]) -> Table:
    """Return what each task reaches alone and together with others.

    Args:
        models: A group of columns for each.
    """
    kinds = ["alone", "alone, 10 % of data", "alone, update", "with 1 other", "with all"]
    columns = [("", "task"), *((model.label, kind) for model in models for kind in kinds)]
    tasks = dict.fromkeys(task for model in models for task in model.tasks)
    rows = [[task, *(cell for m in models for cell in _baselines(m, task))] for task in tasks]
    means = [
        number(mean)
        for model in models
        for mean in pd.concat([model.baselines(task) for task in model.tasks]).mean()
    ]
    return Table(columns, [("", [*rows, ["mean", *means]])])


def _baselines(model: Model, task: str) -> list[str]:
    if task not in model.tasks:
        return ["-"] * 5
    own = model.baselines(task)
    return [
        number(mean) + ("" if math.isnan(error) else f" ± {error:.1f}")
        for mean, error in zip(own.mean(), own.sem(), strict=True)
    ]


def tier_table(measures: Measures) -> Table:
    """Return what each method does on each permutation of a tier.

    Args:
        measures: Of one model at that tier.
    """
    columns = [("", "method")]
    for chain in measures.chains:
        columns += [(chain, "old, % (CF red.)"), (chain, "new, acc.")]
    for name in ("old, change %", "CF reduction %", "plain mean %", "new, points vs none"):
        columns.append(("all permutations", name))
    names = [*measures.methods, "individual", "combined"]
    return Table(columns, _grouped([_tier_row(measures, name) for name in names]))


def _tier_row(measures: Measures, name: str) -> list[str]:
    row = [name]
    for chain in measures.chains:
        news = measures.new[name][chain]
        change = signed(measures.change[name][chain].mean())
        reduction = signed(measures.reduction(name, chain), 0)
        part = _PART if 0 < news.isna().sum() < len(news) else ""
        bracket = "" if name == "none" or change == "-" else f" ({reduction})"
        row += [f"{change}{bracket}{part}", f"{number(news.mean())}{part}"]
    own = measures.summary(name)
    row += [_marked(own, signed(own.change))]
    if name == "none":
        return [*row, "-", "-", "-"]
    row += [_marked(own, signed(own.reduction, 0)), _plain_mean(own, len(measures.chains))]
    return [*row, _marked(own, with_error(own.points, own.error))]


def summary_table(measured: Sequence[Measures]) -> Table:
    """Return the CF reductions of all models at tier 2 beside the paper's.

    Args:
        measured: A group of columns for each.
    """
    columns = [("", "method"), ("McInerney et al. 2021", "CF reduction %")]
    for measures in measured:
        for name in ("CF reduction %", "plain mean %", "new, points vs none", "within 1 point"):
            columns.append((measures.model.label, name))
    rows = []
    names = dict.fromkeys(name for measures in measured for name in measures.methods)
    for name in in_order(name for name in names if name != "none"):
        row = [name, str(PAPER[name]) if name in PAPER else "-"]
        for measures in measured:
            if name not in measures.methods:
                row += ["-"] * 4
                continue
            own = measures.summary(name)
            within = "-" if math.isnan(own.points) else "yes" if within_a_point(own) else "no"
            row += [_marked(own, signed(own.reduction, 0))]
            row += [_plain_mean(own, len(measures.chains))]
            row += [_marked(own, with_error(own.points, own.error)), within]
        rows.append(row)
    return Table(columns, _grouped(rows))


def strength_table(measures: Measures) -> Table:
    """Return the strengths that the development splits chose.

    Args:
        measures: Of one model at one tier.
    """
    rows = []
    for name in measures.methods:
        cells = [_strengths(measures, chain, name) for chain in measures.chains]
        if set(cells) != {"-"}:
            rows.append([name, *cells])
    columns = [("", "method"), *(("", chain) for chain in measures.chains)]
    return Table(columns, _grouped(rows))


def settings_table(models: Sequence[Model]) -> Table:
    """Return what the models' runs were made with, but for strengths and seeds.

    Args:
        models: A column for each.
    """
    settings = [_flat(model.settings) for model in models]
    names = dict.fromkeys(name for own in settings for name in own)
    columns = [("", "setting"), *(("", model.label) for model in models)]
    return Table(columns, [("", [[n, *(own.get(n, "-") for own in settings)] for n in names])])


def _flat(settings: Mapping[str, Any]) -> dict[str, str]:
    flat = {}
    for name, value in settings.items():
        inner = value if isinstance(value, dict) else {"": value}
        for key, own in inner.items():
            # Strengths and seeds are those of the runs, whatever the arguments' defaults say.
            if name != "LearningArguments" or key not in ("strengths", "seed"):
                flat[key or name] = _shown(own)
    return flat


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value)


def within_a_point(summary: Summary) -> bool:
    """Tell whether a method costs the new task at most a point, on the mean."""
    return summary.points >= -1 - 1e-9


def number(value: float, digits: int = 1) -> str:
    """Return a number as text, ``-`` for one that is not known."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def signed(value: float, digits: int = 1) -> str:
    """Return a number that may be below zero as text, ``-`` for one that is not known."""
    if math.isnan(value):
        return "-"
    text = f"{value:.{digits}f}"
    if not float(text):
        text = text.lstrip("-")
    return text.replace("-", "\N{MINUS SIGN}")


def with_error(value: float, error: float) -> str:
    """Return a difference with its sign and its standard error."""
    if math.isnan(value):
        return "-"
    text = signed(value, 2)  # one digit would not tell a cost of 0.96 points from one of 1.04
    plus = "+" if value > 0 and float(text) else ""
    return f"{plus}{text}" + ("" if math.isnan(error) else f" ± {error:.2f}")


def _plain_mean(own: Summary, chains: int) -> str:
    """The plain mean, with the number of permutations that have a CF reduction if not all do."""
    text = signed(own.plain_mean, 0)
    return text if text == "-" or own.plain_count == chains else f"{text} (of {own.plain_count})"


def _strengths(measures: Measures, chain: str, name: str) -> str:
    tried = measures.tried(chain, name)
    chosen = tried[tried.chosen]
    if chosen.empty or not chosen.strength.iloc[0]:
        return "-"
    strengths = chosen.strength.iloc[0]
    text = ", ".join(f"{float(f'{strength:.3g}'):g}" for strength in strengths)
    last = [strength[-1] for strength in tried.strength]
    if min(last) == max(last):
        return text
    return text + {max(last): " ↑", min(last): " ↓"}.get(strengths[-1], "")


def _marked(summary: Summary, text: str) -> str:
    return f"{text}{_PART}" if 0 < summary.runs < summary.expected else text


def _grouped(rows: Sequence[list[str]]) -> list[tuple[str, list[list[str]]]]:
    return [(name, list(own)) for name, own in groupby(rows, lambda row: group_of(row[0]))]
