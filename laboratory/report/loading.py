"""Results files of the experiment over all permutations, put together model by model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from hf_kfc.errors import ConsolidationError

from ..ledger import read_ledger
from ..methods import Method
from ..search import Choices, Point

__all__ = ["REFERENCES", "Model", "load_models"]

REFERENCES = ("individual", "individual:0.1", "individual:update", "combined")
"""Runs that are no method: a task alone, and tasks together."""


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
        records: Mapping[Point, Mapping[str, Any]],
        notes: Sequence[str] = (),
        run_count: int = 0,
        seconds: float = 0.0,
    ) -> None:
        self.settings, self.headers, self.records = settings, headers, records
        self.notes, self.run_count, self.seconds = list(notes), run_count, seconds
        self.seeds = list(dict.fromkeys(point.seed for point in records))
        self.tasks: list[str] = list(settings["tasks"])
        self._choices = Choices(records, self.seeds[0])
        self._tried: dict[tuple[tuple[str, ...], str], list[Point]] = {}
        for point in records:
            if point.seed == self.seeds[0]:
                self._tried.setdefault((point.tasks, point.method), []).append(point)
        self._chosen: dict[tuple[tuple[str, ...], str], Point | None] = {}

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
        names = (point.method for point in self.records if len(point.tasks) == tier)
        return [name for name in dict.fromkeys(names) if name not in REFERENCES]

    def tried(self, chain: Sequence[str], method: str) -> list[Point]:
        """Return the runs of a method on the first seed, one for each strength, the least first."""
        found = self._tried.get((tuple(chain), method), [])
        return sorted(found, key=lambda point: point.strengths)

    def chosen(self, chain: Sequence[str], method: str) -> Point | None:
        """Return the run of the first seed whose strengths the development splits choose.

        None if there is nothing to choose from: the method, or no method, was not run there.
        """
        key = (tuple(chain), method)
        if key not in self._chosen:
            none = Point(self.seeds[0], key[0], "none")
            known = none in self.records and bool(self.tried(chain, method))
            self._chosen[key] = self._choices.chosen(chain, method) if known else None
        return self._chosen[key]

    def run(self, chain: Sequence[str], method: str, seed: int) -> Mapping[str, Any] | None:
        """Return the record of a method on a chain, with the strengths chosen for it.

        Args:
            chain: Tasks in the order learnt; of ``combined``, in any order.
            method: A method, or one of :data:`REFERENCES`.
            seed: One of the seeds.

        Returns:
            The record; None if the run is missing.
        """
        if method == "combined":
            chain = [task for task in self.tasks if task in chain]
        strengths: tuple[float, ...] = ()
        if method not in REFERENCES and Method.parse(method).curvature:
            chosen = self.chosen(chain, method)
            if chosen is None:
                return None
            strengths = chosen.strengths
        return self.records.get(Point(seed, tuple(chain), method, strengths))

    def missing_references(self) -> dict[str, int]:
        """Return how many runs each of :data:`REFERENCES` lacks."""
        single = [(task,) for task in self.tasks]
        several = [
            own
            for count in range(2, len(self.tasks) + 1)
            for own in combinations(self.tasks, count)
        ]
        counts = {
            name: sum(
                self.run(own, name, seed) is None
                for own in (several if name == "combined" else single)
                for seed in self.seeds
            )
            for name in REFERENCES
            if name != "individual:update" or self.settings.get("update_examples") is not None
        }
        return {name: count for name, count in counts.items() if count}


def load_models(paths: Sequence[Path]) -> list[Model]:
    """Read results files and put together those of one model.

    A run that several files hold, such as a task alone, is taken from the first of them.

    Args:
        paths: Files as ``recipes/permutations.py`` writes them.

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
        header, records = read_ledger(path, Point)
        if not records:
            raise ConsolidationError(f"{path} holds no run; leave it out or run the experiment")
        try:
            ranker = str(header["settings"]["RankerArguments"]["ranker"])
            list(header["settings"]["tasks"])
        except (KeyError, TypeError) as error:
            raise ConsolidationError(
                f"{path} is of another experiment than that over permutations (no {error} in its "
                "settings); leave it out"
            ) from error
        files.setdefault(ranker, {})[path] = (header, records)
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
        for point, record in more.items():
            if point in merged:
                twice += 1
                unequal += any(
                    record[split] != merged[point][split] for split in ("validation", "test")
                )
            merged.setdefault(point, record)
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
