"""The penalty in trainers of other losses and other models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import models
from tiny.data import Collator
from tiny.models import ranking_cnn
from tiny.priors import make_prior
from tiny.reference import DensePenalty
from tiny.trainings import DATA, Recorder, assert_near, trained
from torch import Tensor, nn
from transformers import (
    BartForConditionalGeneration,
    GPT2LMHeadModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
)

from hf_kfc.priors import ConsolidationPrior
from hf_kfc.training import ConsolidationArguments, ConsolidationMixin


class SquareTrainer(Trainer):
    """A Trainer with a loss of its own."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        outputs = model(**{k: v for k, v in inputs.items() if k != "candidate_mask"})
        loss = outputs.logits.square().mean()
        return (loss, outputs) if return_outputs else loss


class ConsolidatedSquareTrainer(ConsolidationMixin, SquareTrainer):
    pass


def test_a_trainer_with_its_own_loss(tmp_path: Path) -> None:
    priors = [make_prior(ranking_cnn(), "mixed")]
    trainer = trained(
        tmp_path,
        priors,
        kind=ConsolidatedSquareTrainer,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
    )
    seen, model = trainer.data_collator.seen, ranking_cnn().double().eval()
    assert len(trainer.recorder.steps) == 3
    for start, (parameters, gradients) in zip((0, 4, 8), trainer.recorder.steps, strict=True):
        model.load_state_dict(parameters)
        model.zero_grad()
        batches = [
            Collator(masked=False)([DATA[i] for i in ids]) for ids in seen[start : start + 4]
        ]
        task = torch.stack([model(**batch).logits.square().mean() for batch in batches]).mean()
        (penalty,) = DensePenalty(priors, [0.3], 0.1)(dict(model.named_parameters()))
        (task + penalty).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            assert_near(gradients[name], parameter.grad, name)


@dataclass
class Seq2SeqConsolidationArguments(ConsolidationArguments, Seq2SeqTrainingArguments):
    pass


class Seq2SeqConsolidationTrainer(ConsolidationMixin, Seq2SeqTrainer):
    pass


def bart() -> BartForConditionalGeneration:
    model: BartForConditionalGeneration = models.bart(seed=0, init_std=0.3)
    return model


class ConsolidatedTrainer(ConsolidationMixin, Trainer):
    pass


def gpt2() -> GPT2LMHeadModel:
    return models.gpt2(seed=0, dropout=0.0, vocab_size=20, initializer_range=0.3)


def sequences(same: bool) -> list[dict[str, Tensor]]:
    """Sequences of uneven length: a mean over tokens is not one over examples."""
    torch.manual_seed(3)
    labels = [torch.randint(4, 20, (3 + index,)) for index in range(5)]
    return [
        {"input_ids": row if same else torch.randint(4, 20, (6,)), "labels": row} for row in labels
    ]


@pytest.mark.parametrize(
    ("make_model", "kind"), [(bart, Seq2SeqConsolidationTrainer), (gpt2, ConsolidatedTrainer)]
)
def test_language_models(make_model: Any, kind: Any, tmp_path: Path) -> None:
    prior = ConsolidationPrior.l2(make_model(), task="old")
    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01)
    data, recorder = sequences(same=make_model is gpt2), Recorder()
    args = Seq2SeqConsolidationArguments(
        str(tmp_path),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        max_grad_norm=0.0,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=5,
        num_train_epochs=1,
        strengths=[2.0],
        damping=0.0,
    )
    kind(model, args, priors=[prior], train_dataset=data, callbacks=[recorder]).train()
    ((start, gradients),) = recorder.steps
    reference = make_model().double().eval()
    reference.load_state_dict(start, strict=False)
    batches = [{k: v[None] for k, v in row.items()} for row in data]
    if make_model is gpt2:  # a mean over the tokens of all micro-batches
        more = {"num_items_in_batch": sum(len(row["labels"]) for row in data)}
        loss = torch.stack([reference(**batch, **more).loss for batch in batches]).sum()
    else:  # of each
        loss = torch.stack([reference(**batch).loss for batch in batches]).mean()
    loss.backward()
    for name, parameter in reference.named_parameters():
        delta = start[name].double() - prior.anchor[name]
        assert_near(gradients[name], parameter.grad + 2 * 2.0 * delta, name)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"label_smoothing_factor": 0.2},
        {"gradient_checkpointing": True},
        {"gradient_accumulation_steps": 3, "max_steps": 2},
        {"bf16": True, "average_tokens_across_devices": True},
    ],
    ids=lambda changes: next(iter(changes), "plain"),
)
def test_a_trainer_that_generates_is_as_ever(changes: dict[str, Any], tmp_path: Path) -> None:
    """Without priors: its losses, its weights and what it generates are the plain Trainer's."""
    found: list[Any] = []
    torch.manual_seed(3)
    data = [{"input_ids": torch.randint(4, 20, (6,))} for _ in range(12)]
    for row in data:
        row["labels"] = torch.randint(4, 20, (4,))
        row["decoder_input_ids"] = row["labels"].roll(1)  # smoothing takes the labels away
    for number, kind in enumerate((Seq2SeqTrainer, Seq2SeqConsolidationTrainer)):
        torch.manual_seed(0)
        settings: dict[str, Any] = {
            "per_device_train_batch_size": 2,
            "max_steps": 3,
            "learning_rate": 1e-2,
            "predict_with_generate": True,
            "generation_max_length": 6,
            "report_to": "none",
            "use_cpu": True,
            "logging_steps": 1,
        }
        args = Seq2SeqTrainingArguments(str(tmp_path / str(number)), **settings | changes)
        trainer = kind(bart(), args, train_dataset=data, eval_dataset=data[:2])
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        found.append((losses, trainer.model.state_dict(), trainer.predict(data[:2]).predictions))
    (losses, weights, generated), (own_losses, own_weights, own_generated) = found
    assert losses == own_losses
    assert all(torch.equal(value, own_weights[name]) for name, value in weights.items())
    assert (generated == own_generated).all()
