"""The cross-encoder trainer of sentence-transformers learns new pairs, and holds on to old ones.

pip install "hf_kfc[trainers]"
python examples/trainers/cross_encoder.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from material import encoder, questions, tokenizer
from sentence_transformers.cross_encoder import (
    CrossEncoder,
    CrossEncoderTrainer,
    CrossEncoderTrainingArguments,
)
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
from transformers import DataCollatorWithPadding

from hf_kfc import ConsolidationConfig, ConsolidationMixin, ConsolidationPrior


class ConsolidatedCrossEncoderTrainer(ConsolidationMixin, CrossEncoderTrainer):
    """CrossEncoderTrainer with `priors=` and `consolidation=`."""


def pairs(place: str) -> list[dict[str, Any]]:
    """Make questions with their own answer, or with the next one's."""
    asked = questions(place, 32)
    return [
        {"question": one, "answer": asked[(number + wrong) % 32][1], "label": 1.0 - wrong}
        for number, (one, _) in enumerate(asked)
        for wrong in (0, 1)
    ]


def old_prior(model: CrossEncoder) -> ConsolidationPrior:
    """Make the prior of the old pairs: of the classifier inside, a score is a logit."""
    read = tokenizer()
    rows = [{**read(r["question"], r["answer"]), "labels": [r["label"]]} for r in pairs("kitchen")]
    classifier: Any = model[0].auto_model
    classifier.config.problem_type = "multi_label_classification"
    collator = DataCollatorWithPadding(read)
    return ConsolidationPrior.estimate(classifier, rows, collator, task="kitchen")


def load() -> CrossEncoder:
    """Make a cross-encoder of a tiny BERT."""
    with tempfile.TemporaryDirectory() as folder:
        encoder(labels=1).save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        return CrossEncoder(folder, device="cpu")  # CrossEncoder("cross-encoder/...")


def make_trainer(
    model: CrossEncoder, priors: Sequence[ConsolidationPrior] = (), **settings: Any
) -> ConsolidatedCrossEncoderTrainer:
    """Return their trainer, which also holds on to the tasks of the priors."""
    return ConsolidatedCrossEncoderTrainer(
        model=model,
        args=CrossEncoderTrainingArguments(
            "runs/cross_encoder", report_to="none", bf16=False, **settings
        ),
        train_dataset=Dataset.from_list(pairs("pharmacy")),
        loss=BinaryCrossEntropyLoss(model),
        priors=priors,
        consolidation=ConsolidationConfig(strengths=0.5) if priors else None,
    )


if __name__ == "__main__":
    model = load()
    print(make_trainer(model, [old_prior(model)], logging_steps=1).train())
