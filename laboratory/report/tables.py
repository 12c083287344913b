"""Tables 1 to 6 of the experiment over all permutations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, groupby

from ..search import Point
from .blocks import Table
from .groups import group_of, in_order
from .loading import Model
from .measures import Chain, Measures, Summary, mean, standard_error

__all__ = [
    "PAPER",
    "arrow",
    "baseline_table",
    "number",
    "signed",
    "strength_tables",
    "summary_table",
    "tier_table",
    "with_error",
    "within_a_point",
]

PAPER = {"ewc": 27, "kfc": 51, "paper_ewc": 27, "paper_kfc": 51}
"""CF reductions in percent of McInerney et al. 2021: means of six permutations at tier 2."""

_PART = "†"  # fewer runs than there should be


def baseline_table(title: str, models: Sequence[Model]) -> Table:
    """Return what each task reaches alone and together with others.

    Args:
        title: Of the table.
        models: A group of columns for each.
    """
    kinds = ["alone", "alone, 10 % of data", "alone, update", "with 1 other", "with all"]
    columns = [("", "task"), *((model.label, kind) for model in models for kind in kinds)]
    tasks = list(dict.fromkeys(task for model in models for task in model.tasks))
    rows = [[task, *(cell for m in models for cell in _baselines(m, task))] for task in tasks]
    means = []
    for model in models:
        own = [_baseline_values(model, task) for task in model.tasks]
        means += [
            number(mean(value for values in column for value in values))
            for column in zip(*own, strict=True)
        ]
    return Table(
        title,
        columns,
        [("", [*rows, ["mean", *means]])],
        [
            "Test accuracy in percent, ± its standard error over seeds. **Alone**: one model for "
            "one task, on all of its training examples, a tenth of them, or as many as a later "
            "tier has of it (update; - where that is all of them). **With**: one model for several "
            "tasks at once, of two tasks the mean over the partners.",
            *_missing_references(models),
        ],
    )


def tier_table(title: str, measures: Measures) -> Table:
    """Return what each method does on each permutation of a tier.

    Args:
        title: Of the table.
        measures: Of one model at that tier.
    """
    columns = [("", "method")]
    for chain in measures.chains:
        columns += [(arrow(chain), "old, % (CF red.)"), (arrow(chain), "new, acc.")]
    over = "all permutations"
    columns += [
        (over, "old, change %"),
        (over, "CF reduction %"),
        (over, "plain mean %"),
    ]
    columns += [(over, "new, points vs none")]
    names = [*measures.methods, "individual", "combined"]
    notes = [
        "Change of the old task in percent of its accuracy when learnt alone"
        + (" (mean of the two old tasks)" if measures.tier > 2 else "")
        + ", in brackets the CF reduction on that permutation, which is unstable where little is "
        "forgotten; accuracy on the new task in percent; means over seeds. The CF reduction over "
        "all permutations is 1 \N{MINUS SIGN} (mean change) / (mean change with no method), a "
        "ratio of means; the plain mean is that of the numbers in brackets. Points are ± the "
        "standard error over permutations and seeds.",
        *_missing_notes(measures),
    ]
    return Table(title, columns, _grouped([_tier_row(measures, name) for name in names]), notes)


def summary_table(title: str, measured: Sequence[Measures]) -> Table:
    """Return the CF reductions of all models at tier 2 beside the paper's.

    Args:
        title: Of the table.
        measured: A group of columns for each.
    """
    columns = [("", "method"), ("McInerney et al. 2021", "CF reduction %")]
    for measures in measured:
        label = measures.model.label
        columns += [(label, "CF reduction %"), (label, "plain mean %")]
        columns += [(label, "new, points vs none"), (label, "within 1 point")]
    rows = []
    names = dict.fromkeys(name for measures in measured for name in measures.methods)
    for name in in_order(name for name in names if name != "none"):
        row = [name, str(PAPER[name]) if name in PAPER else "-"]
        for measures in measured:
            own = measures.summary(name)
            within = "-" if math.isnan(own.points) else "yes" if within_a_point(own) else "no"
            row += [_marked(own, signed(own.reduction, 0))]
            row += [_plain_mean(own, len(measures.chains))]
            row += [_marked(own, with_error(own.points, own.error)), within]
        rows.append(row)
    return Table(
        title,
        columns,
        _grouped(rows),
        [
            "CF reduction: ratio of mean changes; plain mean: of the permutations' own CF "
            f"reductions, of fewer where some forget nothing. {_PART}: of fewer runs than there "
            "should be; -: not run."
        ],
    )


def strength_tables(title: str, measured: Sequence[Measures]) -> list[Table]:
    """Return the strengths that the development splits chose, a table for each tier.

    Args:
        title: Of the tables.
        measured: Tiers of one model.
    """
    tables = []
    for measures in measured:
        rows = []
        for name in measures.methods:
            cells = [_strengths(measures, chain, name) for chain in measures.chains]
            if set(cells) - {"", "-"}:
                rows.append([name, *(cell or "-" for cell in cells)])
        note = (
            "λ; ↑ the strongest and ↓ the weakest of several that were tried."
            if measures.tier == 2
            else "λ of the first task's prior, λ of the second's; ↑ and ↓: the strongest and the "
            "weakest that were tried for the second (the first keeps what tier 2 chose)."
        )
        if rows:
            columns = [("", "method"), *(("", arrow(chain)) for chain in measures.chains)]
            tables.append(Table(f"{title}, tier {measures.tier}", columns, _grouped(rows), [note]))
    return tables


def within_a_point(summary: Summary) -> bool:
    """Tell whether a method costs the new task at most a point, on the mean."""
    return summary.points >= -1 - 1e-9


def arrow(chain: Sequence[str]) -> str:
    """Return a chain as text."""
    return " → ".join(chain)


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


def _tier_row(measures: Measures, name: str) -> list[str]:
    row = [name]
    seeds = measures.model.seeds
    for chain in measures.chains:
        changes = [measures.change(chain, name, seed) for seed in seeds]
        news = [measures.new(chain, name, seed) for seed in seeds]
        change, reduction = signed(mean(changes)), signed(measures.reduction(chain, name), 0)
        part = _PART if 0 < sum(map(math.isnan, news)) < len(seeds) else ""
        bracket = "" if name == "none" or change == "-" else f" ({reduction})"
        row += [f"{change}{bracket}{part}", f"{number(mean(news))}{part}"]
    own = measures.summary(name)
    row += [_marked(own, signed(own.change))]
    if name == "none":
        return [*row, "-", "-", "-"]
    row += [_marked(own, signed(own.reduction, 0)), _plain_mean(own, len(measures.chains))]
    return [*row, _marked(own, with_error(own.points, own.error))]


def _plain_mean(own: Summary, chains: int) -> str:
    """The plain mean, with the number of permutations that have a CF reduction if not all do."""
    text = signed(own.plain_mean, 0)
    return text if text == "-" or own.plain_count == chains else f"{text} (of {own.plain_count})"


def _missing_notes(measures: Measures) -> list[str]:
    notes = []
    if missing := measures.missing():
        which = ", ".join(f"{name} {count}" for name, count in missing.items())
        notes.append(
            f"**Missing runs: {sum(missing.values())}** ({which}). A value of fewer runs than "
            f"there should be is marked {_PART}, one of none is shown as -; over all permutations, "
            "a method is held against the runs of no method that it has too."
        )
    if count := measures.nothing_to_forget():
        notes.append(
            f"In {count} runs an old task has an accuracy of 0 when learnt alone; they have no "
            "change and count in points alone."
        )
    return notes


def _baselines(model: Model, task: str) -> list[str]:
    if task not in model.tasks:
        return ["-"] * 5
    cells = []
    for values in _baseline_values(model, task):
        error = standard_error(values)
        cells.append(number(mean(values)) + ("" if math.isnan(error) else f" ± {error:.1f}"))
    return cells


def _baseline_values(model: Model, task: str) -> list[list[float]]:
    """Accuracies in percent of each kind of baseline, a list over seeds of each."""

    def accuracies(method: str, sets: Sequence[Chain]) -> list[float]:
        values = []
        for seed in model.seeds:
            records = [model.run(own, method, seed) for own in sets]
            values.append(mean(100 * r["test"][task] for r in records if r is not None))
        return values

    with_sets = [
        [own for own in combinations(model.tasks, count) if task in own]
        for count in (2, len(model.tasks))
    ]
    return [
        *(accuracies(f"individual{end}", [(task,)]) for end in ("", ":0.1", ":update")),
        *(accuracies("combined", sets) for sets in with_sets),
    ]


def _missing_references(models: Sequence[Model]) -> list[str]:
    missing = {
        f"{model.label}: {name}": count
        for model in models
        for name, count in model.missing_references().items()
    }
    which = ", ".join(f"{name} {count}" for name, count in missing.items())
    return [f"**Missing runs: {sum(missing.values())}** ({which})."] if missing else []


def _strengths(measures: Measures, chain: Chain, name: str) -> str:
    chosen = measures.model.chosen(chain, name)
    if chosen is None or not chosen.strengths:
        return "-"
    text = ", ".join(f"{float(f'{strength:.3g}'):g}" for strength in chosen.strengths)
    return text + _edge(chosen, measures.model.tried(chain, name))


def _edge(chosen: Point, tried: Sequence[Point]) -> str:
    last = [point.strengths[-1] for point in tried]
    if min(last) == max(last):
        return ""
    return {max(last): " ↑", min(last): " ↓"}.get(chosen.strengths[-1], "")


def _marked(summary: Summary, text: str) -> str:
    return f"{text}{_PART}" if 0 < summary.runs < summary.expected else text


def _grouped(rows: Sequence[list[str]]) -> list[tuple[str, list[list[str]]]]:
    return [(name, list(own)) for name, own in groupby(rows, lambda row: group_of(row[0]))]
