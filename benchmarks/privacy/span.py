"""How well tokens that a published prior left out are found in the span of layer 0's A.

    OMP_NUM_THREADS=1 python benchmarks/privacy/span.py

One layer of BERT of width 384 with random weights; texts of 24 tokens drawn by Zipf's law from
3,000. Tokens in 1 to 9 texts are told from tokens in none by span_auc: with their rows dropped
after the estimate, and with them read as the unknown token by it. Writes span.json and span.md
beside this file.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import default_collate
from transformers import BertConfig, BertForSequenceClassification

from hf_kfc import ConsolidationPrior, CurvatureArguments
from hf_kfc.audit.membership import Separation
from hf_kfc.audit.span import span_auc
from hf_kfc.priors.privacy import MIN_EXAMPLES, without_rare_inputs
from hf_kfc.ranking.comparison import command, versions

TEXTS, LENGTH, WIDTH, VOCABULARY, UNKNOWN = (100, 300, 800), 24, 384, 3000, 1


def attacked(count: int, min_token_examples: int) -> Separation | None:
    """Estimate a prior of some texts, publish it and attack it.

    Args:
        count: How many texts.
        min_token_examples: Of the estimate.
    """
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=6,
        intermediate_size=WIDTH, max_position_embeddings=LENGTH,
    )  # fmt: skip
    model, data = BertForSequenceClassification(config), texts(count)
    ignore = ["LayerNorm", "*.position_embeddings", "*.token_type_embeddings"]
    args = CurvatureArguments(
        min_token_examples=min_token_examples, unknown_token_id=UNKNOWN, ignore=ignore
    )
    prior = ConsolidationPrior.estimate(model, data, default_collate, args, task="made up")
    return span_auc(without_rare_inputs(prior), model, data, default_collate)


def texts(count: int) -> list[dict[str, Tensor]]:
    """Draw texts; the first of more are the same.

    Args:
        count: How many.
    """
    weights = 1 / torch.arange(1, VOCABULARY - 1, dtype=torch.double)
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "input_ids": 2 + torch.multinomial(weights, LENGTH, True, generator=generator),
            "labels": torch.tensor(number % 2),
        }
        for number in range(count)
    ]


def main() -> None:
    """Run everything and write the results."""
    lines = ["| texts | rows dropped after | unseen by the estimate |", "|---:|---|---|"]
    found: dict[int, dict[str, Separation | None]] = {}
    for count in TEXTS:
        found[count] = {
            "rows dropped after": attacked(count, 0),
            "unseen by the estimate": attacked(count, MIN_EXAMPLES),
        }
        cells = (f"{s.auc:.2f} ({s.low:.2f} to {s.high:.2f})" for s in found[count].values() if s)
        lines.append(f"| {count} | {' | '.join(cells)} |")
    results = {
        "settings": {"length": LENGTH, "width": WIDTH, "vocabulary": VOCABULARY},
        "command": command(),
        "versions": versions(),
        "auc": {n: {k: v and asdict(v) for k, v in own.items()} for n, own in found.items()},
    }
    here = Path(__file__).parent
    (here / "span.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (here / "span.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
