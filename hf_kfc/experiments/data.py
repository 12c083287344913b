"""The encoded splits of a task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from ..errors import DataError
from ..ranking import encode_candidates
from ..ranking.checks import check_examples

__all__ = ["Examples", "TaskData", "encode_task", "task_texts"]

Examples = list[dict[str, Any]]
"""Encoded examples in memory: reading Arrow rows in every epoch costs as much as a small CNN."""


@dataclass(frozen=True)
class TaskData:
    """A task ready for a ranker.

    Args:
        name: The task's name.
        train: Encoded training examples.
        validation: Encoded examples for choosing strengths.
        test: Encoded examples for the figures that are reported.
    """

    name: str
    train: Examples
    validation: Examples
    test: Examples


def encode_task(
    name: str,
    splits: datasets.DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> TaskData:
    """Check and encode the splits of a task.

    Args:
        name: The task's name.
        splits: ``train``, ``validation`` and ``test`` as the builders make them.
        tokenizer: Of the ranker.
        max_length: The most tokens of text and candidate name together.

    Raises:
        DataError: An example cannot be ranked.
    """
    for split, examples in splits.items():
        try:
            check_examples(examples)
        except DataError as error:
            raise DataError(f"{name}/{split}: {error}") from None
    encoded = {
        split: encode_candidates(examples, tokenizer, max_length).to_list()
        for split, examples in splits.items()
    }
    return TaskData(name, encoded["train"], encoded["validation"], encoded["test"])


def task_texts(splits: datasets.DatasetDict) -> Iterator[str]:
    """Yield the texts of a task's training examples, for a tokenizer to be trained on."""
    for example in splits["train"]:
        yield " ".join((example["left"], example["mention"], example["right"]))
        yield from example["candidate_names"]
