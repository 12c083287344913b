"""A task cut by document into periods that follow each other."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_kfc.curvature import CurvatureArguments, survey
from hf_kfc.errors import DataError
from hf_kfc.ranking.tasks import prepare_task

from .arguments import DataArguments, RankerArguments
from .data import TaskData, encode_task
from .processes import process_state
from .tiers import new_ranker

__all__ = ["prepare_periods", "split_periods"]

_SPLITS = ("train", "validation", "test")


def split_periods(
    name: str, splits: datasets.DatasetDict, count: int
) -> list[datasets.DatasetDict]:
    """Cut a task by document into periods that follow each other.

    Documents are ordered by their identifiers: as numbers where all are (PubMed's grow with
    time), otherwise as text, without the name of the split in a generated one. A period's last
    document is the one that brings the training examples so far nearest to the period's share;
    the other splits are cut at the same documents, and what comes after all belongs to the last
    period.

    Args:
        name: The task's name, for messages.
        splits: ``train``, ``validation`` and ``test`` as the builders make them.
        count: Number of periods.

    Returns:
        The periods, each with the three splits.

    Raises:
        DataError: A period has no examples in one of the splits.
    """
    documents = {split: list(splits[split]["document"]) for split in _SPLITS}
    numbers = all(document.isdecimal() for ids in documents.values() for document in ids)
    keys: dict[str, list[Any]] = {
        split: [int(d) if numbers else d.replace(f"-{split}-", "-") for d in ids]
        for split, ids in documents.items()
    }
    ends = _last_documents(keys["train"], count)
    rows: list[dict[str, list[int]]] = [{split: [] for split in _SPLITS} for _ in range(count)]
    for split in _SPLITS:
        for row, key in enumerate(keys[split]):
            rows[bisect.bisect_left(ends, key)][split].append(row)
    for period, chosen in enumerate(rows, 1):
        if empty := [split for split, indices in chosen.items() if not indices]:
            raise DataError(
                f"task '{name}': period {period} of {count} has no {' and no '.join(empty)} "
                "examples; give more of them or fewer periods"
            )
    return [
        datasets.DatasetDict({split: splits[split].select(chosen[split]) for split in _SPLITS})
        for chosen in rows
    ]


def _last_documents(documents: Sequence[Any], count: int) -> list[Any]:
    """The last document of each period but the last, which is open."""
    sizes = sorted(Counter(documents).items())
    so_far = list(accumulate(size for _, size in sizes))
    ends = []
    for period in range(1, count):
        share = period * len(documents) / count
        nearest = min(range(len(sizes)), key=lambda index: abs(so_far[index] - share))
        ends.append(sizes[nearest][0])
    return ends


def prepare_periods(
    name: str,
    count: int,
    base: int,
    ranker: RankerArguments,
    data: DataArguments,
    curvature: CurvatureArguments,
    seed: int,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[TaskData]]:
    """Load a task in periods, and the ranker.

    Args:
        name: The task.
        count: Number of periods.
        base: Number of the first ones, that the base model learns.
        ranker: Which ranker; a new one gets the vocabulary of the base periods.
        data: The examples, of all periods together.
        curvature: What is to be estimated of the ranker, once it has learnt.
        seed: Of the examples drawn and of new weights.

    Returns:
        Model, tokenizer and encoded periods.

    Raises:
        HfKfcError: The task or a file is missing or malformed, a period has no examples, or the
            ranker has no such curvature.
    """
    with process_state().main_process_first():  # the others find the examples in the cache
        builder = prepare_task(name, data_dir=data.data_dir, seed=seed, **data.config)
        periods = split_periods(name, builder.as_dataset(), count)
        model, tokenizer = new_ranker(ranker, periods[:base], seed)
        survey(model, curvature.ignore)  # refuses now what the estimate would refuse later
        encoded = [
            encode_task(f"{name}, period {number}", period, tokenizer, ranker.max_length)
            for number, period in enumerate(periods, 1)
        ]
    return model, tokenizer, encoded
