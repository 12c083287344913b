"""Trainings of the tiny models that keep their gradients."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from hf_kfc.priors import ConsolidationPrior
from hf_kfc.ranking import RankingConsolidationTrainer
from hf_kfc.training import ConsolidationArguments, ConsolidationConfig, ConsolidationMixin

from .data import FOR_EVALUATION, Collator, make_examples, pad
from .models import ranking_cnn

LEARNING_RATE = 0.05
DATA = make_examples()
HELD_OUT = [example | {"index": FOR_EVALUATION} for example in make_examples(7, seed=5)]


def full(tensor: Tensor) -> Tensor:
    tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return tensor.detach().clone()


class Recorder(TrainerCallback):
    """Keeps parameters and gradients as they are right before each optimizer step."""

    def __init__(self) -> None:
        self.steps: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def on_pre_optimizer_step(self, *_: Any, model: nn.Module, **kwargs: Any) -> None:
        named = dict(model.named_parameters())
        self.steps.append(
            (
                {n: full(p) for n, p in named.items()},
                {n: full(p.grad) for n, p in named.items() if p.grad is not None},
            )
        )


def arguments(
    directory: Path | str,
    settings: type[ConsolidationArguments] = ConsolidationArguments,
    **changes: Any,
) -> ConsolidationArguments:
    """Plain SGD on the CPU that logs every step and writes nothing."""
    defaults: dict[str, Any] = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "optim": "sgd",
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "num_train_epochs": 1,
        "strengths": [0.3],
    }
    return settings(str(directory), **(defaults | changes))


def assert_near(actual: Tensor, expected: Tensor, name: str) -> None:
    """A float32 result equals a float64 one."""
    torch.testing.assert_close(
        actual.double(), expected.double(), rtol=1e-4, atol=1e-5, msg=lambda m: f"{name}: {m}"
    )


def make_trainer(
    folder: Path,
    priors: Sequence[ConsolidationPrior] = (),
    model: PreTrainedModel | None = None,
    kind: type[Trainer] = RankingConsolidationTrainer,
    data_collator: Any = None,
    *,
    settings: type[ConsolidationArguments] = ConsolidationArguments,
    train_dataset: Any = DATA,
    compute_loss_func: Any = None,
    probes: Any = (),
    probe_collator: Any = None,
    **changes: Any,
) -> Any:
    """A trainer on the tiny data; ``trainer.recorder`` keeps the gradients."""
    recorder = Recorder()
    held = {"priors": priors, "probes": probes, "probe_collator": probe_collator}
    trainer = kind(
        ranking_cnn() if model is None else model,
        arguments(folder, settings, **changes),
        train_dataset=train_dataset,
        eval_dataset=HELD_OUT,
        data_collator=data_collator or Collator(),
        compute_loss_func=compute_loss_func,
        callbacks=[recorder],
        **(held if issubclass(kind, ConsolidationMixin) else {}),
    )
    trainer.recorder = recorder
    return trainer


def trained(*args: Any, **kwargs: Any) -> Any:
    trainer = make_trainer(*args, **kwargs)
    trainer.train()
    return trainer


def train(
    kind: type[Trainer],
    model: PreTrainedModel,
    rows: Sequence[dict[str, Tensor]],
    folder: Path,
    priors: Sequence[ConsolidationPrior] = (),
    config: ConsolidationConfig | None = None,
    settings: type[TrainingArguments] = TrainingArguments,
    more: dict[str, Any] | None = None,
    **changes: Any,
) -> Any:
    """A finished training; its ``recorder`` has the gradients of each step."""
    defaults: dict[str, Any] = {
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "optim": "sgd",
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 1,
    }
    recorder = Recorder()
    given = {"priors": priors, "consolidation": config}
    trainer: Any = kind(
        model,
        settings(str(folder), **(defaults | changes)),
        train_dataset=rows,
        callbacks=[recorder],
        **(given if issubclass(kind, ConsolidationMixin) else {}),
        **({"data_collator": pad} | (more or {})),
    )
    trainer.recorder = recorder
    trainer.train()
    return trainer


def gradients(trainer: Any, step: int = 0) -> Tensor:
    """All gradients right before an optimizer step."""
    return torch.cat([gradient.flatten() for gradient in trainer.recorder.steps[step][1].values()])
