"""transformers' Seq2SeqTrainer learns new questions, and holds on to old ones by their prior.

python examples/trainers/seq2seq.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from material import encoder_decoder, questions, tokenizer
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

from hf_kfc import ConsolidationConfig, ConsolidationMixin, ConsolidationPrior


class ConsolidatedSeq2SeqTrainer(ConsolidationMixin, Seq2SeqTrainer):
    """Seq2SeqTrainer with `priors=` and `consolidation=`; everything else is its own."""


def encoded(place: str) -> list[dict[str, Any]]:
    """Make examples: a question is read, an answer is written."""
    read, end = tokenizer(), [2]
    return [
        {"input_ids": read(asked)["input_ids"], "labels": read(told)["input_ids"] + end}
        for asked, told in questions(place, 32)
    ]


def old_prior(model: Any) -> ConsolidationPrior:
    """Make the prior of the old questions, while they are there."""
    collator = DataCollatorForSeq2Seq(tokenizer(), model)
    return ConsolidationPrior.estimate(model, encoded("kitchen"), collator, task="kitchen")


def make_trainer(
    model: Any, priors: Sequence[ConsolidationPrior] = (), **settings: Any
) -> ConsolidatedSeq2SeqTrainer:
    """Return a Seq2SeqTrainer like any other, which also holds on to the tasks of the priors."""
    return ConsolidatedSeq2SeqTrainer(
        model,
        Seq2SeqTrainingArguments(
            "runs/seq2seq", report_to="none", predict_with_generate=True, **settings
        ),
        train_dataset=encoded("pharmacy"),
        eval_dataset=encoded("pharmacy")[:8],
        data_collator=DataCollatorForSeq2Seq(tokenizer(), model),
        processing_class=tokenizer(),
        priors=priors,
        consolidation=ConsolidationConfig(strengths=0.5) if priors else None,
    )


if __name__ == "__main__":
    model = encoder_decoder()  # AutoModelForSeq2SeqLM.from_pretrained(...)
    trainer = make_trainer(model, [old_prior(model)], logging_steps=1)
    print(trainer.train())
    print(trainer.evaluate())
