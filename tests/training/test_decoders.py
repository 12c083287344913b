"""Causal language models are consolidated against priors that were estimated on their texts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import models
from tiny.data import pad_texts
from tiny.models import DECODER_VOCABULARY
from tiny.reference import DensePenalty
from tiny.trainings import Recorder, assert_near
from torch import Tensor
from transformers import PreTrainedModel, Trainer

from hf_kfc.curvature import CurvatureArguments
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.training import ConsolidationArguments, ConsolidationMixin

KINDS = ("diagonal", "kronecker", "kronecker_eigen")
collate = pad_texts()


class ConsolidatedTrainer(ConsolidationMixin, Trainer):
    pass


def gpt2() -> PreTrainedModel:
    return models.gpt2(seed=0, dropout=0.0)


def llama() -> PreTrainedModel:
    return models.llama(seed=0)


def texts(seed: int, count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, DECODER_VOCABULARY, (4 + i % 3,), generator=generator)
        for i in range(count)
    ]


@pytest.mark.parametrize("curvature", KINDS)
@pytest.mark.parametrize("make", [gpt2, llama])
def test_a_step_is_that_of_loss_and_penalty(make: Any, curvature: str, tmp_path: Path) -> None:
    """GPT-2's head is tied: its row of the penalty moves the embedding and the head at once."""
    arguments = CurvatureArguments(curvature=curvature, curvature_batch_size=3)
    prior = ConsolidationPrior.estimate(make(), texts(1, 7), collate, arguments, task="old")
    model, recorder, batches = make(), Recorder(), list[dict[str, Tensor]]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    args = ConsolidationArguments(
        str(tmp_path),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        max_grad_norm=0.0,
        per_device_train_batch_size=3,
        num_train_epochs=2,
        learning_rate=0.01,
        strengths=[2.0],
        damping=0.1,
    )

    def remember(rows: list[Tensor]) -> dict[str, Tensor]:
        batches.append(collate(rows))
        return batches[-1]

    trainer = ConsolidatedTrainer(
        model,
        args,
        priors=[prior],
        train_dataset=texts(2, 6),
        data_collator=remember,
        callbacks=[recorder],
    )
    trainer.train()
    assert len(recorder.steps) == len(batches) == 4
    reference, penalize = make().double(), DensePenalty([prior], [2.0], 0.1)
    for batch, (parameters, gradients) in zip(batches, recorder.steps, strict=True):
        reference.load_state_dict(parameters, strict=False)
        reference.zero_grad()
        (penalty,) = penalize(dict(reference.named_parameters()))
        items = trainer._get_num_items_in_batch([batch], args.device)
        loss = reference(**batch, num_items_in_batch=items).loss
        assert penalty > 0.01 * loss, "the penalty is too small to be seen"
        (loss + penalty).backward()
        for name, parameter in reference.named_parameters():
            assert_near(gradients[name], parameter.grad, name)


def test_the_example_of_the_docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "explanation" / "decoders.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    ran: dict[str, Any] = {}
    exec(code, ran)
    assert ran["trainer"].state.global_step == 1
    assert len(ran["prior"].curvature.blocks) > 10
