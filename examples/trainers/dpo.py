"""TRL's DPOTrainer learns to prefer answers, and holds on to old texts by their prior.

pip install "hf_kfc[trainers]"
python examples/trainers/dpo.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from material import decoder, questions, tokenizer
from sft import old_prior
from trl import DPOConfig, DPOTrainer

from hf_kfc import ConsolidationConfig, ConsolidationMixin, ConsolidationPrior

ROWS = [
    {"prompt": f"{asked} answer : ", "chosen": told, "rejected": told.replace("you", "twice")}
    for asked, told in questions("pharmacy", 32)
]


class ConsolidatedDPOTrainer(ConsolidationMixin, DPOTrainer):
    """DPOTrainer with `priors=` and `consolidation=`; everything else is its own."""


def make_trainer(
    model: Any, priors: Sequence[ConsolidationPrior] = (), **settings: Any
) -> ConsolidatedDPOTrainer:
    """Return a DPOTrainer like any other; the old task is not that of its reference model."""
    return ConsolidatedDPOTrainer(
        model=model,
        args=DPOConfig("runs/dpo", report_to="none", bf16=False, **settings),
        train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer(),
        priors=priors,
        consolidation=ConsolidationConfig(strengths=0.5) if priors else None,
    )


if __name__ == "__main__":
    model = decoder()  # AutoModelForCausalLM.from_pretrained(...)
    model.save_pretrained("runs/dpo/base")  # DPOTrainer reads its reference model from there
    model = type(model).from_pretrained("runs/dpo/base")
    print(make_trainer(model, [old_prior(model)], logging_steps=1).train())
