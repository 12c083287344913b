"""Results files of the experiment over all permutations, put together model by model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from hf_kfc.errors import ConsolidationError

from ..ledger import read_ledger
from ..points import BASELINES, Point, Record
from .frame import runs_frame

__all__ = ["Model", "load_models"]


class Model:
    """All runs of one model, from one results file or several.

    Args:
        settings: What all of its files were made with.
        headers: Of each file its settings and what its runs were made by, by path.
        records: The runs; those of the first seed with every strength that was tried.
        notes: What a reader has to know of how they were put together.
        run_count: Runs in the files, those that several of them hold counted each time.
        seconds: What those took.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        headers: Mapping[Path, Mapping[str, Any]],
        records: Mapping[Point, Record],
        notes: Sequence[str] = (),
        run_count: int = 0,
        seconds: float = 0.0,
    ) -> None:
        self.settings, self.headers, self.records = settings, headers, records
        self.notes, self.run_count, self.seconds = list(notes), run_count, seconds
        self.seeds = list(dict.fromkeys(point.seed for point in records))
        self.tasks: list[str] = list(settings["tasks"])
        self.has_updates = settings.get("update_examples") is not None
        self.frame = runs_frame(records, self.has_updates)

    @property
    def ranker(self) -> str:
        """``cnn``, or where the encoder came from."""
        return str(self.settings["RankerArguments"]["ranker"])

    @property
    def is_cnn(self) -> bool:
        """Whether the model is a new CNN and no pretrained encoder."""
        return self.ranker == "cnn"

    @property
    def label(self) -> str:
        """Its name in tables and pictures."""
        if self.is_cnn:
            return "CNN"
        layers = self.settings["RankerArguments"].get("num_layers")
        name = Path(self.ranker).name
        return f"{name}, {layers} layers" if layers else name

    def methods(self, tier: int) -> list[str]:
        """Return the methods that were run on chains of so many tasks, in the files' order."""
        names = self.frame.method[self.frame.tier == tier].unique()
        return [name for name in names if name not in BASELINES]

    def baselines(self, task: str) -> pd.DataFrame:
        """Return the accuracy on a task alone and together, in percent: a row for each seed.

        Args:
            task: The task.
        """
        frame = self.frame
        own = frame[(frame.new_task == task) & frame.method.isin(BASELINES)]
        whole = own.groupby(["method", "tier", "seed"]).new.mean()
        kinds = [(name, 1) for name in BASELINES[:3]]
        kinds += [("combined", 2), ("combined", len(self.tasks))]
        rows = [[whole.get((*kind, seed), math.nan) for kind in kinds] for seed in self.seeds]
        return pd.DataFrame(rows, self.seeds, dtype=float)

    def missing_baselines(self) -> dict[str, int]:
        """Return how many runs each baseline lacks."""
        single = [(task,) for task in self.tasks]
        several = [
            own
            for count in range(2, len(self.tasks) + 1)
            for own in combinations(self.tasks, count)
        ]
        counts = {
            name: sum(
                Point(seed, own, name) not in self.records
                for own in (several if name == "combined" else single)
                for seed in self.seeds
            )
            for name in BASELINES
            if name != "individual:update" or self.has_updates
        }
        return {name: count for name, count in counts.items() if count}


def load_models(paths: Sequence[Path]) -> list[Model]:
    """Read results files and put together those of one model.

    A run that several files hold, such as a task alone, is taken from the first of them.

    Args:
        paths: Files of the experiment over all permutations.

    Returns:
        One for each ranker, the CNN first.

    Raises:
        ConsolidationError: A file is missing or broken, or two files of one ranker were made with
            other settings or chose their strengths on different seeds.
    """
    if not paths:
        raise ConsolidationError("there are no results to report; give at least one file")
    files: dict[str, dict[Path, Any]] = {}
    for path in dict.fromkeys(paths):
        header, records = read_ledger(path)
        if not records:
            raise ConsolidationError(f"{path} holds no run; leave it out or run the experiment")
        settings = header["settings"]
        missing = [name for name in ("RankerArguments", "tasks") if name not in settings]
        if missing or "old_train_examples" in settings:
            raise ConsolidationError(
                f"{path} is of another experiment than that over permutations; leave it out"
            )
        files.setdefault(settings["RankerArguments"]["ranker"], {})[path] = (header, records)
    models = [_merged(own) for own in files.values()]
    return sorted(models, key=lambda model: not model.is_cnn)


def _merged(files: Mapping[Path, Any]) -> Model:
    (first, (header, records)), *others = files.items()
    merged, twice, unequal = dict(records), 0, 0
    seed = next(iter(records)).seed
    for path, (other, more) in others:
        _check_alike(first, header["settings"], path, other["settings"])
        if (own := next(iter(more)).seed) != seed:
            raise ConsolidationError(
                f"{first} chose its strengths on seed {seed} and {path} on seed {own}; give files "
                "with one first seed"
            )
        both = [point for point in more if point in merged]
        twice += len(both)
        unequal += sum(
            any(more[point][split] != merged[point][split] for split in ("validation", "test"))
            for point in both
        )
        merged |= {point: record for point, record in more.items() if point not in merged}
    notes = []
    if twice:
        differ = f"; {unequal} of them differ in their accuracies" if unequal else ", all alike"
        notes.append(f"{twice} runs stand in several files and are taken from the first{differ}.")
    every = [record for _, runs in files.values() for record in runs.values()]
    return Model(
        header["settings"],
        {path: own for path, (own, _) in files.items()},
        # The first seed first, and the seeds in their order, whichever file they came from.
        dict(sorted(merged.items(), key=lambda item: (item[0].seed != seed, item[0].seed))),
        notes,
        len(every),
        sum(record.get("seconds", 0.0) for record in every),
    )


def _check_alike(
    first: Path, settings: Mapping[str, Any], path: Path, other: Mapping[str, Any]
) -> None:
    different = [
        name for name in dict.fromkeys([*settings, *other]) if settings.get(name) != other.get(name)
    ]
    if different:
        raise ConsolidationError(
            f"{first} and {path} are of one ranker but differ in {' and '.join(different)}; "
            "report them apart"
        )
