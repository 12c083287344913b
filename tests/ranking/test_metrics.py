import math
import socket

import datasets
import numpy as np
import pytest
import torch
from tiny.models import cnn
from transformers import EvalPrediction, Trainer, TrainingArguments

from hf_kfc.errors import DataError
from hf_kfc.ranking.collator import CandidateCollator
from hf_kfc.ranking.encoding import train_tokenizer
from hf_kfc.ranking.evaluation import Forgetting, RankingAccuracy
from hf_kfc.ranking.metrics import (
    cf_reduction,
    compute_metrics,
    relative_change,
)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a metric opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("in_memory", [False, True])
def test_accuracy(tmp_path, in_memory):
    metric = RankingAccuracy(cache_dir=str(tmp_path), keep_in_memory=in_memory)
    result = metric.compute(predictions=[0, 2, 1, 1], references=[0, 2, 1, 0])
    assert result == {"accuracy": 0.75}


def test_accuracy_in_batches(tmp_path):
    metric = RankingAccuracy(cache_dir=str(tmp_path))
    metric.add_batch(predictions=np.array([0, 1]), references=np.array([0, 0]))
    metric.add(prediction=3, reference=3)
    assert metric.compute() == {"accuracy": pytest.approx(2 / 3)}


def test_accuracy_of_nothing_is_refused():
    with pytest.raises(DataError, match="no examples"):
        compute_metrics(EvalPrediction(np.zeros((0, 3)), np.zeros(0)))


@pytest.mark.parametrize("in_memory", [False, True])
def test_forgetting(tmp_path, in_memory):
    metric = Forgetting(cache_dir=str(tmp_path), keep_in_memory=in_memory)
    assert metric.compute(before=[0.8, 0.5], after=[0.6, 0.5]) == {
        "relative_change": pytest.approx(-12.5)
    }
    assert metric.compute(before=[0.8], after=[0.7], after_without=[0.6]) == {
        "relative_change": pytest.approx(-12.5),
        "cf_reduction": pytest.approx(0.5),
    }


def test_relative_change_is_a_mean_of_ratios():
    assert relative_change([0.8, 0.4], [0.4, 0.4]) == pytest.approx(-25)
    assert relative_change(0.5, 0.6) == pytest.approx(20)
    with pytest.raises(DataError, match="above zero"):
        relative_change([0.8, 0.0], [0.4, 0.0])
    with pytest.raises(DataError, match="above zero"):
        relative_change([], [])
    with pytest.raises(ValueError, match="broadcast"):
        relative_change([0.8, 0.7], [0.1, 0.2, 0.3])


def test_cf_reduction():
    assert cf_reduction(-12.2, -38.4) == pytest.approx(1 - 12.2 / 38.4)
    assert cf_reduction(0, -10) == 1
    assert cf_reduction(-20, -10) == -1
    assert math.isnan(cf_reduction(-1, 0))
    assert math.isnan(cf_reduction(-1, 2))


def test_compute_metrics_ignores_the_trainers_padding():
    logits = np.array([[-200.0, -150.0, -100.0], [1.0, 3.0, 2.0]])
    labels = np.array([1, 2])
    assert compute_metrics(EvalPrediction(logits, labels)) == {"accuracy": 0.5}
    assert compute_metrics(EvalPrediction((logits, None), labels)) == {"accuracy": 0.5}


def without_mask(batch):
    return {name: value for name, value in batch.items() if name != "candidate_mask"}


def test_compute_metrics_in_trainer(tmp_path):
    model = cnn(seed=0, vocab_size=60).eval()
    with torch.no_grad():
        model.classifier.bias.fill_(-500.0)  # below the padding value of Trainer
    rows = [
        {
            "input_ids": [[5 + (7 * row + 3 * i + j) % 50 for j in range(4)] for i in range(count)],
            "token_type_ids": [[0, 0, 1, 1]] * count,
            "labels": row % count,
        }
        for row, count in enumerate([2, 2, 4, 4, 3, 3])
    ]
    collator = CandidateCollator(train_tokenizer(["text"], vocab_size=60))
    trainer = Trainer(
        model,
        TrainingArguments(
            str(tmp_path), per_device_eval_batch_size=2, use_cpu=True, report_to="none"
        ),
        data_collator=lambda examples: without_mask(collator(examples)),
        eval_dataset=datasets.Dataset.from_list(rows),
        compute_metrics=compute_metrics,
    )
    # Batches of equal counts: only Trainer's own padding is at work.
    expected = []
    for row in rows:
        expected.append(
            model(**without_mask(collator([row]))).logits.argmax().item() == row["labels"]
        )
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(np.mean(expected))
