"""Data of the tiny models, and what makes batches of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from hf_kfc.ranking import CandidateCollator

from .models import DECODER_VOCABULARY, RANKER_VOCABULARY, VOCABULARY

FOR_EVALUATION = -1
"""The ``index`` of an example that is not trained on."""


def make_examples(count: int = 10, seed: int = 1) -> list[dict[str, Any]]:
    """Encoded ranking examples of 2 to 4 candidates of 5 to 9 tokens each."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, size: int = 1) -> list[int]:
        return torch.randint(low, high, (size,), generator=generator).tolist()

    examples = []
    for index in range(count):
        lengths = draw(5, 10, draw(2, 5)[0])
        examples.append(
            {
                "index": index,
                "input_ids": [draw(1, RANKER_VOCABULARY, n) for n in lengths],
                "token_type_ids": [[0] * (n - 2) + [1] * 2 for n in lengths],
                "labels": draw(0, len(lengths))[0],
            }
        )
    return examples


@dataclass
class Collator:
    """The library's collator, and a note of which examples went into each training batch."""

    masked: bool = True
    seen: list[list[int]] = field(default_factory=list)

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        indices = [example["index"] for example in examples]
        if FOR_EVALUATION not in indices:
            self.seen.append(indices)
        batch = CandidateCollator(SimpleNamespace(pad_token_id=0))(examples)
        return {k: v for k, v in batch.items() if self.masked or k != "candidate_mask"}


def choices(count: int, candidates: Sequence[int] = (2, 3, 4)) -> list[dict[str, Any]]:
    """Multiple-choice examples of mixed numbers of candidates and mixed lengths."""
    made = []
    for index in range(count):
        c = candidates[index % len(candidates)]
        lengths = torch.randint(2, 7, (c,)).tolist()
        made.append(
            {
                "ids": [torch.randint(1, 20, (length,)) for length in lengths],
                "label": int(torch.randint(c, ())),
            }
        )
    return made


def pad_choices(extra_tokens: int = 0, extra_candidates: int = 0) -> Callable[..., dict[str, Any]]:
    """Make a collator that pads to the longest example, and further if asked to."""

    def collate(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        c = max(len(e["ids"]) for e in batch) + extra_candidates
        t = max(len(ids) for e in batch for ids in e["ids"]) + extra_tokens
        made = {
            "input_ids": torch.zeros(len(batch), c, t, dtype=torch.long),
            "attention_mask": torch.zeros(len(batch), c, t, dtype=torch.long),
            "candidate_mask": torch.zeros(len(batch), c, dtype=torch.bool),
            "labels": torch.tensor([e["label"] for e in batch]),
        }
        made["attention_mask"][..., 0] = 1  # attention over nothing is NaN
        for row, example in enumerate(batch):
            for column, ids in enumerate(example["ids"]):
                made["input_ids"][row, column, : len(ids)] = ids
                made["attention_mask"][row, column, : len(ids)] = 1
                made["candidate_mask"][row, column] = True
        return made

    return collate


def raw_texts(count: int) -> list[Tensor]:
    """Token ids of mixed lengths, from 3 on."""
    return [torch.randint(0, DECODER_VOCABULARY, (3 + index % 3,)) for index in range(count)]


def pad_texts(extra: int = 0, prompt: int = 0) -> Callable[[list[Tensor]], dict[str, Tensor]]:
    """Make a collator that pads to the longest text and further, with no label on a prompt."""

    def collate(rows: list[Tensor]) -> dict[str, Tensor]:
        shape = len(rows), max(map(len, rows)) + extra
        batch = {
            "input_ids": torch.zeros(shape, dtype=torch.long),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
            "labels": torch.full(shape, -100),
        }
        for row, ids in enumerate(rows):
            batch["input_ids"][row, : len(ids)] = ids
            batch["attention_mask"][row, : len(ids)] = 1
            batch["labels"][row, prompt : len(ids)] = ids[prompt:]
        return batch

    return collate


LENGTHS = (3, 12, 4, 9, 2, 11, 5, 8)
"""Of the texts: a mean over tokens is not one over texts."""


def texts(lengths: Sequence[int] = LENGTHS) -> list[dict[str, Tensor]]:
    """Texts that are their own labels."""
    generator = torch.Generator().manual_seed(3)
    rows = [torch.randint(1, VOCABULARY, (length,), generator=generator) for length in lengths]
    return [{"input_ids": row, "labels": row} for row in rows]


def labelled(count: int = 8, labels: int = 3) -> list[dict[str, Tensor]]:
    """Texts with a class each."""
    rows = texts(LENGTHS[:count])
    return [{**row, "labels": torch.tensor(i % labels)} for i, row in enumerate(rows)]


def pad(rows: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Pad texts, and labels where there is one for each token."""
    padded = nn.utils.rnn.pad_sequence
    ids = padded([row["input_ids"] for row in rows], batch_first=True)
    labels = [row["labels"] for row in rows]
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "labels": padded(labels, batch_first=True, padding_value=-100)
        if labels[0].ndim
        else torch.stack(labels),
    }


def lists_of_tokens() -> list[dict[str, Any]]:
    """Texts as lists, with a column that no model reads."""
    return [{"input_ids": row["input_ids"].tolist(), "name": "x"} for row in texts()]


def pad_lists(
    side: str = "right", extra: int = 0
) -> Callable[[Sequence[dict[str, Any]]], dict[str, Tensor]]:
    """Make a collator that pads lists of tokens on a side and further, without labels."""

    def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        length = max(len(row["input_ids"]) for row in rows) + extra
        ids, mask = (torch.zeros(len(rows), length, dtype=torch.long) for _ in range(2))
        for number, row in enumerate(rows):
            own = torch.as_tensor(row["input_ids"])
            place = slice(len(own)) if side == "right" else slice(length - len(own), length)
            ids[number, place], mask[number, place] = own, 1
        return {"input_ids": ids, "attention_mask": mask}

    return collate
