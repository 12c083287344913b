"""Batches of candidate-ranking examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import DataError

__all__ = ["CandidateCollator"]


@dataclass
class CandidateCollator:
    """Pad encoded examples to ``[batch, candidates, positions]`` and mask what was padded.

    Examples may have different numbers of candidates. None is dropped: shorter lists are padded
    with rows that ``candidate_mask`` marks. Such a row keeps one attended position, because
    attention over nothing is NaN, and a NaN would reach the whole batch through its gradient.

    Args:
        tokenizer: Gives the padding id.

    Raises:
        DataError: The tokenizer has no padding token.
    """

    tokenizer: PreTrainedTokenizerBase

    def __post_init__(self) -> None:
        if self.tokenizer.pad_token_id is None:
            raise DataError(
                f"The tokenizer {type(self.tokenizer).__name__} has no padding token; set its "
                "pad_token to a token of its vocabulary."
            )

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Make a batch.

        Args:
            examples: Rows of :func:`~hf_kfc.ranking.encoding.encode_candidates`; all of them with
                labels or none.

        Returns:
            ``input_ids``, ``attention_mask`` and, where the examples have them,
            ``token_type_ids``, int64 ``[batch, candidates, positions]``; ``candidate_mask``, bool
            ``[batch, candidates]``, true at real candidates; ``labels``, int64 ``[batch]``, where
            the examples have them.

        Raises:
            DataError: An example has fewer than two candidates, its label names none of them, or
                others have labels and it has none.
        """
        with_labels = any("labels" in example for example in examples)
        for index, example in enumerate(examples):
            _check(example, str(example.get("id", f"number {index} of the batch")), with_labels)
        counts = [len(example["input_ids"]) for example in examples]
        positions = max(len(ids) for example in examples for ids in example["input_ids"])
        shape = (len(examples), max(counts), positions)
        lengths = torch.zeros(shape[:2], dtype=torch.long)
        for row, example in enumerate(examples):
            lengths[row, : counts[row]] = torch.tensor(list(map(len, example["input_ids"])))
        attended = torch.arange(positions) < lengths.unsqueeze(-1)
        batch = {"input_ids": torch.full(shape, self.tokenizer.pad_token_id, dtype=torch.long)}
        batch["attention_mask"] = attended.long()
        if "token_type_ids" in examples[0]:
            batch["token_type_ids"] = torch.zeros(shape, dtype=torch.long)
        for name in batch.keys() - {"attention_mask"}:  # all tokens of the batch at once
            lists = chain.from_iterable(example[name] for example in examples)
            flat = np.fromiter(chain.from_iterable(lists), np.int64)
            batch[name][attended] = torch.from_numpy(flat)
        batch["candidate_mask"] = torch.arange(shape[1]) < torch.tensor(counts).unsqueeze(1)
        batch["attention_mask"][..., 0] = 1
        if with_labels:
            batch["labels"] = torch.tensor([int(example["labels"]) for example in examples])
        return batch


def _check(example: Mapping[str, Any], name: str, with_labels: bool) -> None:
    count = len(example["input_ids"])
    if count < 2:
        raise DataError(
            f"Example {name} has {count} candidate(s), so that there is nothing to rank; retrieve "
            "more candidates or remove the example."
        )
    if with_labels and "labels" not in example:
        raise DataError(
            f"Example {name} has no label where others of the batch have one; give it one, or "
            "make batches of examples without labels (probes) apart."
        )
    if with_labels and not 0 <= example["labels"] < count:
        raise DataError(
            f"Example {name} has the label {example['labels']} but {count} candidates; labels "
            "count from 0 and must name the gold candidate."
        )
