"""The encoded splits of a task."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from hf_kfc.errors import DataError
from hf_kfc.ranking import encode_splits
from hf_kfc.ranking.checks import check_examples

__all__ = ["Example", "Examples", "TaskData", "encode_task", "random_examples"]

Example = dict[str, Any]
Examples = list[Example]
"""Encoded examples in memory: reading Arrow rows in every epoch costs as much as a small CNN."""


@dataclass(frozen=True)
class TaskData:
    """A task ready for a ranker.

    Args:
        name: The task's name.
        train: Encoded training examples.
        validation: Encoded examples for choosing strengths.
        test: Encoded examples for the figures that are reported.
        parts: Tasks that it was put together from; a share is kept of each for rehearsal.
    """

    name: str
    train: Examples
    validation: Examples
    test: Examples
    parts: tuple[TaskData, ...] = ()


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
    encoded = encode_splits(splits, tokenizer, max_length)
    return TaskData(name, encoded["train"], encoded["validation"], encoded["test"])


def random_examples(
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    seed: int,
    candidates: int = 10,
    tokens: int = 32,
) -> Examples:
    """Make ranking examples of random tokens, for a prior without data.

    Args:
        tokenizer: Gives the vocabulary; special tokens are left out, but for the separator
            between text and name.
        count: Number of examples.
        seed: Of the draw.
        candidates: Candidates of an example.
        tokens: Tokens of a candidate's pair.

    Returns:
        Examples as :func:`~hf_kfc.ranking.encode_candidates` makes them; the labels are drawn
        too, and mean nothing.
    """
    draw = random.Random(seed)
    special = set(tokenizer.all_special_ids)
    words = [token for token in range(len(tokenizer)) if token not in special]
    first, separator = tokenizer.cls_token_id, tokenizer.sep_token_id
    text, name = tokens - 8, 5
    examples: Examples = []
    for _ in range(count):
        shared = [first, *draw.choices(words, k=text), separator]
        pairs = [[*shared, *draw.choices(words, k=name), separator] for _ in range(candidates)]
        types = [[0] * len(shared) + [1] * (name + 1)] * candidates
        label = draw.randrange(candidates)
        examples.append({"input_ids": pairs, "token_type_ids": types, "labels": label})
    return examples
