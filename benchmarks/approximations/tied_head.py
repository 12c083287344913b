"""A head tied to the embedding: its two products, or the diagonal, by what is forgotten with each.

    python benchmarks/approximations/tied_head.py

A Llama of two layers and width 32 learns recipes for the kitchen, then directions for medicines
(both made up, examples/causal_lm.py). The prior of all layers is the same but for the one weight
that is embedding and head: the factors of both uses, as by default; its diagonal; or nothing.
Cross entropies of test texts in nats, means over seeds, at several strengths: a comparison is
fair where both learn equally much.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from datasets import Dataset
from transformers import DataCollatorForLanguageModeling, LlamaForCausalLM, set_seed

from hf_kfc import (
    ConsolidationArguments,
    ConsolidationPrior,
    ConsolidationTrainer,
    CurvatureArguments,
)
from hf_kfc.training import bayesian_strength

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from causal_lm import directions, recipes, tiny_model

HERE = Path(__file__).parent
SEEDS, MULTIPLES, TEXTS = 3, (5.0, 20.0, 80.0, 320.0), 2000
TIED = "model.embed_tokens.weight"


class Stage:
    """A model that has learnt recipes, and three priors of it.

    Args:
        seed: Of weights, texts and order.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        set_seed(seed)
        untied, tokenizer = tiny_model()
        untied.config.tie_word_embeddings = True
        model = LlamaForCausalLM(untied.config)

        def encoded(texts: list[str]) -> Dataset:
            return Dataset.from_dict({"input_ids": tokenizer(texts)["input_ids"]})

        self.collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        self.new = encoded(directions(TEXTS, 10 * seed + 2))
        self.tests = {
            "old": encoded(recipes(300, 10 * seed + 3)),
            "new": encoded(directions(300, 10 * seed + 4)),
        }
        old = encoded(recipes(TEXTS, 10 * seed + 1))
        self.before = self.losses(self.trained(model, old))
        self.model = model
        kronecker, diagonal = (
            ConsolidationPrior.estimate(
                model,
                old,
                self.collator,
                CurvatureArguments(curvature=kind, labels="sampled"),
                task="recipes",
            )
            for kind in ("kronecker", "diagonal")
        )
        (own,) = (block for block in diagonal.curvature.blocks if TIED in block.shapes)
        self.priors = {
            "both products": kronecker,
            "diagonal": _with(kronecker, own),
            "nothing": _with(kronecker, None),
        }

    def trained(
        self,
        model: Any,
        data: Dataset,
        prior: ConsolidationPrior | None = None,
        multiple: float = 0,
    ) -> ConsolidationTrainer:
        """Train a model, held by a prior at a multiple of its Bayesian strength."""
        tokens = sum(len(text["input_ids"]) - 1 for text in data)
        args = ConsolidationArguments(
            "runs/tied_head",
            num_train_epochs=3,
            learning_rate=3e-3,
            per_device_train_batch_size=32,
            strengths=None if prior is None else [multiple * bayesian_strength(prior, tokens)],
            penalty_ignore=None if prior is None or TIED in prior.anchor else [TIED],
            use_cpu=True,
            seed=self.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
        )
        trainer = ConsolidationTrainer(
            model,
            args,
            priors=[] if prior is None else [prior],
            train_dataset=data,
            data_collator=self.collator,
        )
        trainer.train()
        return trainer

    def losses(self, trainer: ConsolidationTrainer) -> dict[str, float]:
        """Measure both kinds of text."""
        return {
            name: trainer.predict(data).metrics["test_loss"] for name, data in self.tests.items()
        }

    def learnt(self, name: str | None, multiple: float) -> dict[str, float]:
        """Learn directions with one of the priors, or none."""
        prior = None if name is None else self.priors[name]
        return self.losses(self.trained(copy.deepcopy(self.model), self.new, prior, multiple))


def _with(prior: ConsolidationPrior, block: Any) -> ConsolidationPrior:
    """Replace the block of the tied weight, or leave it out."""
    blocks = [block if TIED in own.shapes else own for own in prior.curvature.blocks]
    curvature = replace(prior.curvature, blocks=tuple(own for own in blocks if own is not None))
    kept = {name for own in curvature.blocks for name in own.shapes}
    anchor = {name: value for name, value in prior.anchor.items() if name in kept}
    return ConsolidationPrior(anchor, curvature, prior.provenance)


def table(rows: list[Mapping[str, Any]]) -> str:
    """Write the means over seeds."""
    lines = ["| tied weight has | λ / Bayes | old texts | new texts |", "|---|---:|---:|---:|"]
    for key in dict.fromkeys((row["prior"], row["multiple"]) for row in rows):
        own = [row for row in rows if (row["prior"], row["multiple"]) == key]
        cells = (f"{fmean(row[kind] for row in own):.3f}" for kind in ("old", "new"))
        lines.append(f"| {key[0]} | {key[1]:g} | {' | '.join(cells)} |".replace("| 0 |", "| |"))
    return "\n".join(lines)


def main() -> None:
    """Measure and write ``tied_head.json`` and ``tied_head.md``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    rows: list[Mapping[str, Any]] = []
    for seed in range(SEEDS):
        stage = Stage(seed)
        rows.append({"prior": "before", "multiple": 0.0, "seed": seed, **stage.before})
        for name in (None, *stage.priors):
            for multiple in MULTIPLES if name else (0.0,):
                found = stage.learnt(name, multiple)
                rows.append(
                    {"prior": name or "no prior", "multiple": multiple, "seed": seed, **found}
                )
                print(rows[-1], file=sys.stderr)
    (HERE / "tied_head.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    title = "# A head tied to the embedding: both products, or the diagonal"
    text = f"{title}\n\nMade by `tied_head.py`; {SEEDS} seeds, nats.\n\n{table(rows)}\n"
    (HERE / "tied_head.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
