"""The Bayesian strength counts what the new loss is a mean over."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import models
from tiny.data import LENGTHS, labelled, pad, texts
from tiny.models import VOCABULARY, classifier, text_llama, text_t5
from tiny.priors import prior_of
from transformers import GPT2LMHeadModel, TrainingArguments

from hf_kfc.training import ConsolidationTrainer
from hf_kfc.training.strengths import count_labels


def gpt2() -> GPT2LMHeadModel:
    """The Trainer does not know by its class that it compares with the next label."""
    return models.gpt2(vocab_size=VOCABULARY)


def trainer_of(model: Any, rows: Any, folder: Path) -> Any:
    args = TrainingArguments(str(folder), use_cpu=True, report_to="none")
    return ConsolidationTrainer(
        model, args, priors=[prior_of(model)], train_dataset=rows, data_collator=pad
    )


@pytest.mark.parametrize(
    ("make", "rows", "labels"),
    [
        (text_llama, texts, sum(LENGTHS) - 8),
        (gpt2, texts, sum(LENGTHS) - 8),
        (text_t5, texts, sum(LENGTHS)),
        (classifier, labelled, 8),
    ],
)
def test_the_default(
    make: Any, rows: Any, labels: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_of(make(), rows(), tmp_path)
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="hf_kfc.training.strengths"):
        assert trainer.strengths == trainer.strengths == [16 / (2 * labels)]
    assert caplog.messages == [
        f"The new loss is a mean over {labels} labels of 8 examples: strengths are by default "
        f"N_old / (2 * {labels})."
    ]


def test_another_data_set_is_counted_anew(tmp_path: Path) -> None:
    trainer = trainer_of(text_llama(), texts(), tmp_path)
    before = trainer.strengths
    trainer.train_dataset = texts((6, 6))
    assert trainer.strengths == [16 / (2 * 10)] != before


def test_a_large_data_set_is_counted_in_part() -> None:
    calls = []

    def collate(rows: list[int]) -> dict[str, torch.Tensor]:
        calls.extend(rows)
        return {"labels": torch.tensor([[row, -100, row] for row in rows])}

    assert count_labels(range(5000), collate, ["labels"]) == 10000
    assert len(calls) == 1024 and calls[-1] > 4900


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        ({"start_positions": [1, 2], "end_positions": [3, 4]}, 8),
        ({"input_ids": [[1, 2], [3, 4]]}, 4),
        ({"start_positions": [[-100.0, 0.5], [0.0, 1.0]]}, 8),
    ],
    ids=["answers", "none", "several_numbers"],
)
def test_other_labels(batch: dict[str, Any], count: int) -> None:
    tensors = {name: torch.tensor(values) for name, values in batch.items()}
    names = ["start_positions", "end_positions"]
    assert count_labels(range(4), lambda _: tensors, names, batch_size=2) == count


def test_random_labels_leave_no_trace() -> None:
    """As those of masked language models; every process must count the same."""

    def collate(rows: list[int]) -> dict[str, torch.Tensor]:
        random.random()
        np.random.rand()
        return {"labels": torch.where(torch.rand(len(rows), 9) < 0.5, 1, -100)}

    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    first = count_labels(range(64), collate, ["labels"])
    after = random.random(), float(np.random.rand()), float(torch.rand(()))
    second = count_labels(range(64), collate, ["labels"])
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert after == (random.random(), float(np.random.rand()), float(torch.rand(())))
    assert first == second and 200 < first < 376
