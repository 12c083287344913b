"""The table of a stream of periods, and the data frame that its pictures are drawn from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hf_kfc.errors import ConsolidationError

from ..ledger import read_ledger
from ..points import periods_so_far
from .grid_table import spread
from .tables import Table

__all__ = ["FROZEN", "RETRAINED", "StreamRuns", "stream_table"]

FROZEN = "frozen"
"""The base model as it is, which others are held against."""
RETRAINED = "retrained"
"""A fresh model that learns all periods so far at once, likewise."""


@dataclass(frozen=True)
class StreamRuns:
    """What a stream has come to.

    Args:
        task: Name of the task.
        periods: T.
        base: k, the periods that the base model has learnt.
        accuracy: In percent on test splits: rows by ``method``, ``seed`` and ``update``, the
            references first; a column for each period. Of methods that are finished in that seed.
        multiples: Strengths by method and seed; NaN without a penalty.
        unfinished: Methods that are so in no seed.
    """

    task: str
    periods: int
    base: int
    accuracy: pd.DataFrame
    multiples: pd.Series
    unfinished: list[str]

    @classmethod
    def read(cls, path: Path) -> StreamRuns:
        """Read a results file.

        Args:
            path: File of the experiment over a stream.

        Raises:
            ConsolidationError: It is not such a file, or a reference is not finished.
        """
        header, records = read_ledger(path)
        try:
            task, periods, base = (
                header["settings"][name] for name in ("task", "periods", "base_periods")
            )
        except (KeyError, TypeError) as error:
            raise ConsolidationError(
                f"{path} holds no stream of periods ({type(error).__name__}: {error}); give the "
                "results of `python -m laboratory stream`"
            ) from error
        names = {"individual": FROZEN, "combined": RETRAINED}
        updates = range(base + 1, periods + 1)
        chains = {periods_so_far(base, update): update for update in updates}
        rows = [
            {
                "method": names.get(point.method, point.method),
                "seed": point.seed,
                "multiple": point.multiple,
                "update": update,
                **{int(period): 100 * value for period, value in record["test"].items()},
            }
            for point, record in records.items()
            for update in (updates if point.method == "individual" else [chains.get(point.tasks)])
            if update is not None  # the file may have runs of a longer stream
        ]
        frame = pd.DataFrame(rows).astype({"multiple": float})
        key = ["method", "seed", "multiple"]
        ends = frame[frame["update"] == periods][key]
        for name in (FROZEN, RETRAINED):
            if name not in set(ends.method):
                raise ConsolidationError(
                    f"{path} has no finished run of '{name}', which others are held against; run "
                    "the stream again, it goes on"
                )
        finished = frame.merge(ends, on=key)  # of several strengths, the one gone on with
        return cls(
            task,
            periods,
            base,
            finished.set_index(["method", "seed", "update"]).drop(columns="multiple"),
            ends.set_index(["method", "seed"]).multiple,
            [name for name in frame.method.unique() if name not in set(ends.method)],
        )

    @property
    def updates(self) -> range:
        """The periods that were learnt one at a time."""
        return range(self.base + 1, self.periods + 1)

    @property
    def names(self) -> list[str]:
        """The references and the methods."""
        return list(self.multiples.index.get_level_values("method").unique())

    @property
    def methods(self) -> list[str]:
        """All but the references."""
        return [name for name in self.names if name not in (FROZEN, RETRAINED)]

    def after(self, method: str, update: int) -> list[float]:
        """Return the accuracy on each period after an update, mean over seeds.

        Args:
            method: A method or reference.
            update: Number of the period that was just learnt.
        """
        own = self.accuracy.loc[method].xs(update, level="update")
        return [float(mean) for mean in own.mean()]


def stream_table(runs: StreamRuns) -> tuple[Table, str]:
    """Make the table of a stream, on test splits, and the notes below it.

    Args:
        runs: What it has come to; of a stream that is not finished, the methods that are.
    """
    columns = [
        *("method", "λ / Bayes", "past periods", "newest", "all"),
        *("all against frozen", "all against retrained", "next period"),
    ]
    ends = runs.accuracy.xs(runs.periods, level="update")
    upcoming = pd.DataFrame(
        {
            update: runs.accuracy.xs(update, level="update")[update + 1]
            for update in runs.updates[:-1]
        }
    ).mean(axis=1)
    rows = []
    for name in runs.names:
        own = ends.loc[name]
        every = own.mean(axis=1)
        against = {
            to: spread(every - ends.loc[to].mean(axis=1)[every.index], "+")
            for to in (FROZEN, RETRAINED)
            if to != name
        }
        multiples = runs.multiples[name].dropna().unique()
        cells = [
            name,
            ", ".join(f"{multiple:g}" for multiple in multiples),
            spread(own[range(1, runs.periods)].mean(axis=1)),
            spread(own[runs.periods]),
            spread(every),
            against.get(FROZEN, ""),
            against.get(RETRAINED, ""),
            spread(upcoming[name]) if len(runs.updates) > 1 else "",
        ]
        rows.append([cell or "-" for cell in cells])
    return Table([("", name) for name in columns], [("", rows)]), " ".join(_notes(runs))


def _notes(runs: StreamRuns) -> Iterator[str]:
    seeds = {name: len(runs.multiples[[name]]) for name in runs.names}
    most = max(seeds.values())
    over = f", mean ± standard deviation over {most} seeds" if most > 1 else ""
    yield (
        f"Test accuracy (%) after the last update of {runs.task} in {runs.periods} periods, "
        f"the first {runs.base} of them learnt at once{over}; 'past periods' is the mean over "
        f"periods 1 to {runs.periods - 1}, 'all' over all {runs.periods}, each period "
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
    if runs.unfinished:
        yield f"Not finished, and left out: {', '.join(runs.unfinished)}."
