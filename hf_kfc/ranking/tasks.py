"""The ranking tasks by name, with the widths of the paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import DataError
from .corpora.bc5cdr import Bc5cdr
from .corpora.builder import CandidateRankingBuilder
from .corpora.codiesp import CodiEsp
from .corpora.medmentions import MedMentionsLines
from .corpora.psytar import PsyTar

__all__ = ["TASKS", "Task", "prepare_task", "register_task"]


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


TASKS: dict[str, Task] = {
    "medmentions": Task(
        MedMentionsLines,
        files={
            "train": "medmentions_st21pv/train.jsonl.gz",
            "test": "medmentions_st21pv/test.jsonl.gz",
            "ontology": "ontologies/cui_names_strict.tsv.gz",
        },
        ontology_license="open_cui_names",
    ),
    "psytar": Task(
        PsyTar,
        files={"mentions": "psytar/psytar_mentions.tsv.gz"},
        config={"retrieval": "tfidf"},
    ),
    "bc5cdr": Task(
        Bc5cdr,
        files={
            "train": "bc5cdr/train_corpus.pubtator.txt.gz",
            "validation": "bc5cdr/dev_corpus.pubtator.txt.gz",
            "test": "bc5cdr/test_corpus.pubtator.txt.gz",
            "ontology": "bc5cdr/mesh_names.tsv.gz",
        },
        ontology_license="mesh",
    ),
    "codiesp": Task(
        CodiEsp,
        files={
            "train": "codiesp/trainX.tsv",
            "validation": "codiesp/devX.tsv",
            "test": "codiesp/testX.tsv",
            "texts": "codiesp/text_files_es_en.tar.gz",
            "ontology": "icd10cm/icd10cm2019.tsv.gz",
        },
    ),
}
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
    name: str, files: Mapping[str, str], data_dir: str | Path | None
) -> dict[str, Path] | None:
    if not files:
        return None
    if data_dir is None:
        raise DataError(
            f"task {name!r} reads files; pass data_dir, the folder with {', '.join(files.values())}"
        )
    paths = {key: Path(data_dir) / file for key, file in files.items()}
    for path in paths.values():
        if not path.is_file():
            raise DataError(f"task {name!r}: {path} is missing; put it there or correct data_dir")
    return paths
