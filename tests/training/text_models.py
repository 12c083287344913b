"""Models that read texts, and trainings of them that keep their gradients."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

sys.path.append(str(Path(__file__).parent))  # of a process that is launched
from consolidation_cases import Recorder

from hf_kfc.priors import ConsolidationPrior
from hf_kfc.training import ConsolidationConfig, ConsolidationMixin

VOCABULARY = 20
LENGTHS = (3, 12, 4, 9, 2, 11, 5, 8)
"""Of the texts: a mean over tokens is not one over texts."""


def llama(attention_dropout: float = 0.0) -> LlamaForCausalLM:
    """Its loss is divided by the labelled tokens of all micro-batches."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
        attention_dropout=attention_dropout,
    )
    return LlamaForCausalLM(config)


def t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=8,
        d_kv=4,
        d_ff=12,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    return T5ForConditionalGeneration(config)


def classifier(labels: int = 3, dropout: float = 0.0) -> BertForSequenceClassification:
    """Its loss is a mean over the micro-batch, though its forward takes ``num_items_in_batch``."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=16,
        num_labels=labels,
        initializer_range=0.3,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForSequenceClassification(config)


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


def prior_of(model: PreTrainedModel, distance: float = 0.1) -> ConsolidationPrior:
    """A prior F = I, its anchor a step away from the model in every parameter."""
    prior = ConsolidationPrior.l2(model, task="old")
    prior.provenance = replace(prior.provenance, num_examples=16)
    prior.anchor = {name: value - distance for name, value in prior.anchor.items()}
    return prior


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
