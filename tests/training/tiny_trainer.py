"""A trainer on the tiny data, and what it trains and evaluates on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from consolidation_cases import Recorder, arguments
from tiny_models import FOR_EVALUATION, Collator, cnn, make_examples
from transformers import PreTrainedModel, Trainer

from hf_kfc.priors import ConsolidationPrior
from hf_kfc.ranking import RankingConsolidationTrainer
from hf_kfc.training import ConsolidationArguments, ConsolidationMixin

DATA = make_examples()
HELD_OUT = [example | {"index": FOR_EVALUATION} for example in make_examples(7, seed=5)]


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
    **changes: Any,
) -> Any:
    """A trainer on the tiny data; ``trainer.recorder`` keeps the gradients."""
    recorder = Recorder()
    trainer = kind(
        cnn() if model is None else model,
        arguments(folder, settings, **changes),
        train_dataset=train_dataset,
        eval_dataset=HELD_OUT,
        data_collator=data_collator or Collator(),
        compute_loss_func=compute_loss_func,
        callbacks=[recorder],
        **({"priors": priors} if issubclass(kind, ConsolidationMixin) else {}),
    )
    trainer.recorder = recorder
    return trainer


def trained(*args: Any, **kwargs: Any) -> Any:
    trainer = make_trainer(*args, **kwargs)
    trainer.train()
    return trainer
