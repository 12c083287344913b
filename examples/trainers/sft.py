"""TRL's SFTTrainer learns new questions, and holds on to old ones by their prior.

pip install "hf_kfc[trainers]"
python examples/trainers/sft.py                    # packed texts
python examples/trainers/sft.py --way assistant    # the answers of conversations alone
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from material import decoder, questions, tokenizer
from transformers import DataCollatorForLanguageModeling
from trl import SFTConfig, SFTTrainer

from hf_kfc import (
    ConsolidationConfig,
    ConsolidationMixin,
    ConsolidationPrior,
    CurvatureArguments,
)

PAIRS = questions("pharmacy", 64)
TEXTS = [f"question : {asked} answer : {told} [END]" for asked, told in PAIRS]
CHATS = [
    [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
    for asked, told in PAIRS
]
PROMPTS = [{"prompt": f"{a} answer : ", "completion": f"{t} [END]"} for a, t in PAIRS]
WAYS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "packing": ([{"text": t} for t in TEXTS], {"packing": True, "max_length": 48}),
    "padding-free": ([{"text": t} for t in TEXTS], {"padding_free": True, "max_length": None}),
    "completion": (PROMPTS, {"completion_only_loss": True}),
    "assistant": ([{"messages": c} for c in CHATS], {"assistant_only_loss": True}),
}
"""Rows, and what SFTConfig is told of them."""


class ConsolidatedSFTTrainer(ConsolidationMixin, SFTTrainer):
    """SFTTrainer with `priors=` and `consolidation=`; everything else is its own."""


def old_prior(model: Any) -> ConsolidationPrior:
    """Make the prior of the old questions, while they are there."""
    texts = [f"question : {asked} answer : {told}" for asked, told in questions("kitchen", 64)]
    rows = Dataset.from_dict({"input_ids": tokenizer()(texts)["input_ids"]})
    collator = DataCollatorForLanguageModeling(tokenizer(), mlm=False)
    args = CurvatureArguments(labels="sampled")
    return ConsolidationPrior.estimate(model, rows, collator, args, task="kitchen")


def make_trainer(
    model: Any, priors: Sequence[ConsolidationPrior] = (), way: str = "packing", **settings: Any
) -> ConsolidatedSFTTrainer:
    """Return an SFTTrainer like any other, which also holds on to the tasks of the priors."""
    rows, own = WAYS[way]
    return ConsolidatedSFTTrainer(
        model=model,
        args=SFTConfig("runs/sft", report_to="none", bf16=False, **(own | settings)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        priors=priors,
        consolidation=ConsolidationConfig(strengths=0.5) if priors else None,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--way", choices=WAYS, default="packing")
    model = decoder()  # AutoModelForCausalLM.from_pretrained(...)
    trainer = make_trainer(model, [old_prior(model)], parser.parse_args().way, logging_steps=1)
    print(trainer.train())
