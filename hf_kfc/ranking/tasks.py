"""The ranking tasks by name, with the widths of the paper."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import DataError
from .corpora.bc5cdr import Bc5cdr
from .corpora.builder import CandidateRankingBuilder
from .corpora.cadec import Cadec
from .corpora.clinical_notes import ClinicalNotes
from .corpora.codiesp import CodiEsp
from .corpora.medmentions import MedMentions, MedMentionsLines
from .corpora.mednorm import MedNorm
from .corpora.psytar import PsyTar
from .corpora.pubtator import Pubtator
from .corpora.tac_adr import TacAdr
from .corpora.twimed import TwiMed

__all__ = ["CORPORA", "TASKS", "Task", "prepare_task", "register_task"]


CORPORA: dict[str, type[CandidateRankingBuilder]] = {
    "bc5cdr": Bc5cdr,
    "cadec": Cadec,
    "clinical_notes": ClinicalNotes,
    "codiesp": CodiEsp,
    "mednorm": MedNorm,
    "medmentions": MedMentions,
    "medmentions_lines": MedMentionsLines,
    "psytar": PsyTar,
    "pubtator": Pubtator,
    "tac_adr": TacAdr,
    "twimed": TwiMed,
}
"""The builders by the name of the corpus or format that they read."""


@dataclass(frozen=True)
class Task:
    """How a task is built.

    Args:
        builder: Its builder class.
        config_name: Which of the builder's configurations, if it has several.
        files: Where each of its files lies in the data folder; empty for a corpus without files.
        config: Fields of its :class:`RankingConfig` that differ from the builder's own.
        ontology_license: Whose the names of concepts are, a key of ``ONTOLOGY_LICENSES``, where
            the ontology's format does not tell.
    """

    builder: type[CandidateRankingBuilder]
    config_name: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    ontology_license: str | None = None


def _known() -> dict[str, Task]:
    """Read the tasks of the package."""
    text = files(__package__).joinpath("tasks.toml").read_text(encoding="utf-8")
    known = tomllib.loads(text)
    return {name: Task(CORPORA[task.pop("corpus")], **task) for name, task in known.items()}


TASKS: dict[str, Task] = _known()
"""The tasks by name, open to others: see :func:`register_task`."""


def register_task(name: str, task: Task) -> None:
    """Add a task, which :func:`prepare_task` and all that goes by names of tasks then know.

    Args:
        name: What it is called.
        task: How it is built.

    Raises:
        DataError: Another task has the name.

    Example:
        >>> files = {"train": "a.txt", "validation": "b.txt", "test": "c.txt", "ontology": "n.tsv"}
        >>> register_task("mine", Task(Pubtator, files=files))  # doctest: +SKIP
    """
    if TASKS.setdefault(name, task) != task:
        raise DataError(f"there is a task {name!r} already; choose another name")


def prepare_task(
    name: str,
    *,
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    num_proc: int | None = None,
    **config: Any,
) -> CandidateRankingBuilder:
    """Build a task, or find it in the cache.

    Args:
        name: A key of ``TASKS``.
        data_dir: Folder with the task's files; for one that reads none, not used.
        cache_dir: Where `datasets` caches; by default where it always does.
        num_proc: Processes that look for candidates; by default one.
        **config: Fields of the task's :class:`RankingConfig` other than the task's own, for
            example ``max_examples={"train": 1000}``.

    Returns:
        The prepared builder: ``as_dataset()`` gives the splits, ``counts`` what was dropped.

    Raises:
        DataError: The name or a field is unknown, a file is missing or malformed, or a number is
            out of its range.

    Example:
        >>> builder = prepare_task("bc5cdr", data_dir="data", seed=1)  # doctest: +SKIP
        >>> train = builder.as_dataset()["train"]  # doctest: +SKIP
    """
    task = TASKS.get(name)
    if task is None:
        raise DataError(f"unknown task {name!r}; use one of {', '.join(TASKS)}")
    known = [field.name for field in fields(task.builder.BUILDER_CONFIG_CLASS)]
    for key in config:
        if key not in known:
            raise DataError(f"task {name!r} has no setting {key!r}; use {', '.join(known)}")
    builder = task.builder(
        config_name=task.config_name,
        data_files=_locate(name, task.files, data_dir),
        cache_dir=None if cache_dir is None else str(cache_dir),
        **{**task.config, **config},
    )
    builder.download_and_prepare(num_proc=num_proc)
    return builder


def _locate(
    name: str, places: Mapping[str, str], data_dir: str | Path | None
) -> dict[str, Path] | None:
    if not places:
        return None
    if data_dir is None:
        listed = ", ".join(places.values())
        raise DataError(f"task {name!r} reads files; pass data_dir, the folder with {listed}")
    paths = {key: Path(data_dir) / file for key, file in places.items()}
    for path in paths.values():
        if not path.is_file():
            raise DataError(f"task {name!r}: {path} is missing; put it there or correct data_dir")
    return paths
