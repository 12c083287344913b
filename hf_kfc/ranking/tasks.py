"""The ranking tasks by name, with the widths of the paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import datasets

from ..errors import DataError
from .bc5cdr import Bc5cdr
from .builder import CandidateRankingBuilder
from .medmentions import MedMentions
from .psytar import PsyTar
from .synthetic import SyntheticMedical

__all__ = ["TASKS", "Task", "load_task", "prepare_task"]


@dataclass(frozen=True)
class Task:
    """How a task is built.

    Args:
        builder: Its builder class.
        config_name: Which of the builder's configurations, if it has several.
        files: Where each of its files lies in the data folder; empty for generated corpora.
        num_candidates: Candidates of an example, by default.
        context_words: Words of context on each side, by default.
        retrieval: How its candidates are found.
    """

    builder: type[CandidateRankingBuilder]
    config_name: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    num_candidates: int = 10
    context_words: int = 10
    retrieval: str = "bm25"


TASKS: Mapping[str, Task] = {
    "articles": Task(SyntheticMedical, "articles"),
    "notes": Task(SyntheticMedical, "notes", num_candidates=25, context_words=20),
    "patients": Task(SyntheticMedical, "patients"),
    "medmentions": Task(
        MedMentions,
        files={
            "train": "medmentions_st21pv/train.jsonl.gz",
            "test": "medmentions_st21pv/test.jsonl.gz",
            "names": "ontologies/cui_names_strict.tsv.gz",
        },
        retrieval="tfidf",
    ),
    "psytar": Task(PsyTar, files={"mentions": "psytar/psytar_mentions.tsv.gz"}, retrieval="tfidf"),
    "bc5cdr": Task(
        Bc5cdr,
        files={
            "train": "bc5cdr/train_corpus.pubtator.txt.gz",
            "validation": "bc5cdr/dev_corpus.pubtator.txt.gz",
            "test": "bc5cdr/test_corpus.pubtator.txt.gz",
            "names": "bc5cdr/mesh_names.tsv.gz",
        },
        retrieval="tfidf",
    ),
}
"""The tasks: three generated ones, then three real corpora."""


def prepare_task(
    name: str,
    *,
    data_dir: str | Path | None = None,
    max_examples: dict[str, int] | None = None,
    num_candidates: int | None = None,
    context_words: int | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> CandidateRankingBuilder:
    """Build a task, or find it in the cache, and keep its builder: it also has the counts.

    Args:
        name: A key of ``TASKS``.
        data_dir: Folder with the files of the real corpora; generated tasks do not use it.
        max_examples: Limit for some or all of the splits ``train``, ``validation``, ``test``.
        num_candidates: Candidates of an example; by default the task's own number.
        context_words: Words of context on each side; by default the task's own number.
        seed: Seed of the examples drawn and of the candidates' order.
        cache_dir: Where `datasets` caches; by default where it always does.

    Returns:
        The prepared builder: ``as_dataset()`` gives the splits, ``counts`` what was dropped.

    Raises:
        DataError: The name is unknown, a file is missing or malformed, or a number is out of its
            range.
    """
    task = TASKS.get(name)
    if task is None:
        raise DataError(f"unknown task {name!r}; use one of {', '.join(TASKS)}")
    builder = task.builder(
        config_name=task.config_name,
        data_files=_locate(name, task.files, data_dir),
        max_examples=max_examples,
        num_candidates=task.num_candidates if num_candidates is None else num_candidates,
        context_words=task.context_words if context_words is None else context_words,
        retrieval=task.retrieval,
        seed=seed,
        cache_dir=None if cache_dir is None else str(cache_dir),
    )
    builder.download_and_prepare()
    return builder


def load_task(
    name: str,
    *,
    data_dir: str | Path | None = None,
    max_examples: dict[str, int] | None = None,
    num_candidates: int | None = None,
    context_words: int | None = None,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> datasets.DatasetDict:
    """Load the examples of a task; see :func:`prepare_task` for its counts.

    Args:
        name: A key of ``TASKS``.
        data_dir: Folder with the files of the real corpora; generated tasks do not use it.
        max_examples: Limit for some or all of the splits ``train``, ``validation``, ``test``.
        num_candidates: Candidates of an example; by default the task's own number.
        context_words: Words of context on each side; by default the task's own number.
        seed: Seed of the examples drawn and of the candidates' order.
        cache_dir: Where `datasets` caches; by default where it always does.

    Returns:
        The splits ``train``, ``validation`` and ``test``.

    Raises:
        DataError: As for :func:`prepare_task`.
    """
    builder = prepare_task(
        name,
        data_dir=data_dir,
        max_examples=max_examples,
        num_candidates=num_candidates,
        context_words=context_words,
        seed=seed,
        cache_dir=cache_dir,
    )
    return builder.as_dataset()


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
