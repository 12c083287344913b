"""The strengths that are taken for each prior, and the set-ups that are refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from tiny.models import ranking_bert, ranking_cnn
from tiny.priors import make_prior
from tiny.trainings import DATA, make_trainer
from torch import nn
from torch.utils.data import IterableDataset

from hf_kfc.errors import ConsolidationError, PriorError
from hf_kfc.priors import ConsolidationPrior

# Strengths


def test_default_strength_is_bayesian(tmp_path: Path) -> None:
    priors = [make_prior(ranking_cnn(), num_examples=30), make_prior(ranking_cnn(), num_examples=5)]
    assert make_trainer(tmp_path, priors, strengths=None).strengths == [1.5, 0.25]


def test_one_strength_is_for_all_priors(tmp_path: Path) -> None:
    priors = [make_prior(ranking_cnn())] * 3
    assert make_trainer(tmp_path, priors, strengths=[0.7]).strengths == [0.7] * 3
    assert make_trainer(tmp_path, priors, strengths=[1, 2, 3]).strengths == [1, 2, 3]


def test_wrong_number_of_strengths(tmp_path: Path) -> None:
    with pytest.raises(ConsolidationError, match="2 strengths were given for 3 priors"):
        make_trainer(tmp_path, [make_prior(ranking_cnn())] * 3, strengths=[0.1, 0.2])


class Endless(IterableDataset[dict[str, Any]]):
    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            yield from DATA


def test_no_bayesian_strength_without_a_number_of_examples(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"train_dataset": Endless(), "strengths": None, "max_steps": 1}
    with pytest.raises(ConsolidationError, match=r"no known number of them.* set `strengths`"):
        make_trainer(tmp_path, [make_prior(ranking_cnn())], **changes)


def test_who_only_evaluates_needs_no_strength(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"train_dataset": None, "strengths": None}
    trainer = make_trainer(tmp_path, [make_prior(ranking_cnn())], **changes)
    assert trainer.evaluate()["eval_loss"] > 0
    with pytest.raises(ValueError, match="requires a train_dataset"):
        trainer.train()


def test_no_bayesian_strength_of_a_prior_without_data(tmp_path: Path) -> None:
    with pytest.raises(ConsolidationError, match=r"'old' has 0 examples.*set `strengths`"):
        make_trainer(tmp_path, [ConsolidationPrior.l2(ranking_cnn(), task="old")], strengths=None)


# Refusals


def test_deepspeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Accelerator, "distributed_type", property(lambda _: DistributedType.DEEPSPEED)
    )
    with pytest.raises(ConsolidationError, match=r"DeepSpeed.*use DDP or FSDP2"):
        make_trainer(tmp_path, [make_prior(ranking_cnn())])
    make_trainer(tmp_path)  # plain training is none of our business


def test_fsdp1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def use(version: int) -> None:
        plugin = FullyShardedDataParallelPlugin(fsdp_version=version)
        monkeypatch.setattr(AcceleratorState, "fsdp_plugin", plugin, raising=False)

    use(1)
    with pytest.raises(ConsolidationError, match=r"FSDP1.*use fsdp_version=2"):
        make_trainer(tmp_path, [make_prior(ranking_cnn())])
    make_trainer(tmp_path)
    use(2)
    make_trainer(tmp_path, [make_prior(ranking_cnn())])


def test_priors_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(PriorError) as refusal:
        make_trainer(tmp_path, [make_prior(ranking_bert())])
    assert "no parameter bert.embeddings.word_embeddings.weight" in str(refusal.value)
    assert "knows nothing of embeddings.weight, convolution.weight" in str(refusal.value)


def test_prior_of_another_shape(tmp_path: Path) -> None:
    model = ranking_cnn()
    prior = make_prior(model)
    model.classifier = nn.Linear(8, 2)
    with pytest.raises(PriorError, match=r"classifier.weight has shape \[2, 8\].*\[1, 8\]"):
        make_trainer(tmp_path, [prior], model)


def test_a_trainable_parameter_that_no_prior_knows(tmp_path: Path) -> None:
    prior = make_prior(ranking_cnn())
    model = ranking_cnn()
    model.extra = nn.Linear(2, 2)
    with pytest.raises(PriorError, match=r"knows nothing of extra.weight"):
        make_trainer(tmp_path, [prior], model)
    model.extra.requires_grad_(False)
    make_trainer(tmp_path, [prior], model)


@pytest.mark.parametrize("value", [-1.0, math.nan])
def test_bad_numbers(value: float, tmp_path: Path) -> None:
    with pytest.raises(ConsolidationError):
        make_trainer(tmp_path, [make_prior(ranking_cnn())], strengths=[value])
    with pytest.raises(ConsolidationError):
        make_trainer(tmp_path, [make_prior(ranking_cnn())], damping=value)
