"""The trainer of sentence-transformers learns new pairs; a prior of the encoder holds the old task.

pip install "hf_kfc[trainers]"
python examples/trainers/embeddings.py
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from material import encoder, questions, tokenizer
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers import DataCollatorWithPadding

from hf_kfc import ConsolidationConfig, ConsolidationMixin, ConsolidationPrior

PAIRS = questions("pharmacy", 32)


class ConsolidatedEmbeddingTrainer(ConsolidationMixin, SentenceTransformerTrainer):
    """SentenceTransformerTrainer with `priors=` and `consolidation=`."""


def old_prior(classifier: Any) -> ConsolidationPrior:
    """Make the prior of an old task of the encoder: here it told questions from answers.

    A contrastive loss has no gradient of one example alone, so an encoder's prior is one of a task
    whose examples are scored by themselves.
    """
    read = tokenizer()
    rows = [
        {**read(text), "label": label}
        for pair in questions("kitchen", 32)
        for label, text in enumerate(pair)
    ]
    collator = DataCollatorWithPadding(read)
    return ConsolidationPrior.estimate(classifier, rows, collator, task="kitchen")


def load(classifier: Any) -> SentenceTransformer:
    """Put the classifier's encoder into a model of sentences."""
    with tempfile.TemporaryDirectory() as folder:
        classifier.base_model.save_pretrained(folder)
        tokenizer().save_pretrained(folder)
        module = Transformer(folder)
    return SentenceTransformer(modules=[module, Pooling(16)], device="cpu")


def make_trainer(
    model: SentenceTransformer, priors: Sequence[ConsolidationPrior] = (), **settings: Any
) -> ConsolidatedEmbeddingTrainer:
    """Return their trainer; the prior's `bert.` is found as their `0.model.`."""
    return ConsolidatedEmbeddingTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            "runs/embeddings", report_to="none", bf16=False, **settings
        ),
        train_dataset=Dataset.from_dict(
            {"anchor": [pair[0] for pair in PAIRS], "positive": [pair[1] for pair in PAIRS]}
        ),
        loss=MultipleNegativesRankingLoss(model),
        priors=priors,
        # The old head is gone: `ignore` says that it is left out on purpose.
        consolidation=ConsolidationConfig(strengths=0.5, ignore=["classifier"]) if priors else None,
    )


if __name__ == "__main__":
    old = encoder()  # AutoModelForSequenceClassification.from_pretrained(...)
    print(make_trainer(load(old), [old_prior(old)], logging_steps=1).train())
