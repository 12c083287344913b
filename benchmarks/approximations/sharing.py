"""How far from the exact Fisher the curvatures of rankers are, block by block.

    OMP_NUM_THREADS=1 python benchmarks/approximations/sharing.py --data_dir data

PsyTAR, by the CNN and by a small BERT with a multiple-choice head. Errors are ‖F̂ − F‖ / ‖F‖ in the
Frobenius norm, with F from the gradient of every example alone (`per_example_gradients`), in
float64, of the best multiple of F̂ too: a search over λ makes up for size. Writes sharing.json and
sharing.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertForMultipleChoice, PreTrainedModel

from hf_kfc.curvature import (
    Block,
    CurvatureArguments,
    estimate_curvature,
    per_example_gradients,
)
from hf_kfc.ranking import CandidateCollator, ranking_forward, ranking_position_mask
from hf_kfc.ranking.comparison import command, versions
from laboratory import DataArguments, LearningArguments, RankerArguments
from laboratory.tiers import learn, prepare

HERE = Path(__file__).parent
TASK, EXAMPLES = "psytar", 150
RANKER = RankerArguments(hidden_size=64, vocab_size=2000, max_length=40)
LEARNING = LearningArguments(epochs=4, learning_rate=3e-3)
KINDS = {
    "expand": CurvatureArguments(sharing="expand"),
    "reduce": CurvatureArguments(sharing="reduce"),
    "expand, EKFAC": CurvatureArguments(sharing="expand", curvature="kronecker_eigen"),
    "centred": CurvatureArguments(sharing="centred"),
    "centred, EKFAC": CurvatureArguments(sharing="centred", curvature="kronecker_eigen"),
}


@dataclass(frozen=True)
class Exact:
    """The exact Fisher of a block, by the gradients of examples.

    Args:
        rows: Gradients [N, q, p].
    """

    rows: Tensor

    def compare(self, block: Block) -> dict[str, float]:
        """Return the error of a curvature, that of its best multiple, and tr(F̂) / tr(F)."""
        F, shape = block.operator, block.shape
        flat = self.rows.flatten(1)
        squared = (flat @ flat.T / len(flat)).square().sum()
        inner = sum(F.quadratic(row) for row in self.rows) / len(flat)
        own = F.inner(F, shape)
        nearest = inner / own if own else 0.0
        return {
            "error": float(((squared + own - 2 * inner).clamp(min=0) / squared).sqrt()),
            "of the best multiple": float(
                ((squared - nearest * inner).clamp(min=0) / squared).sqrt()
            ),
            "trace": float(F.trace(shape) / (flat.square().sum() / len(flat))),
        }


def measure(
    model: PreTrainedModel, examples: list[Any], collator: CandidateCollator
) -> Iterator[dict[str, Any]]:
    """Compare every kind of curvature with the exact one, block by block."""
    model = model.double()
    gradients = per_example_gradients(model, examples, collator, forward=ranking_forward)
    for kind, arguments in KINDS.items():
        curvature = estimate_curvature(
            model,
            examples,
            collator,
            arguments,
            forward=ranking_forward,
            position_mask=ranking_position_mask,
        )
        for block in curvature.blocks:
            rows = [
                block.join({name: gradients[name][i] for name in block.shapes})
                for i in range(len(examples))
            ]
            largest = max(float(row.abs().max()) for row in rows)
            if block.operator.kind == "diagonal" or largest < 1e-10:
                continue  # the same of all kinds; the bias of keys has no gradient
            yield {"kind": kind, "block": block.name, **Exact(torch.stack(rows)).compare(block)}


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """Every block of few, or the median and the largest of many."""
    blocks = list(dict.fromkeys(row["block"] for row in rows))
    few = len(blocks) < 6
    columns = blocks if few else ["median", "largest"]
    lines = [
        "| curvature | " + " | ".join(columns) + " | best multiple: median | tr F̂ / tr F |",
        "|---|" + "---:|" * (len(columns) + 2),
    ]
    for kind in KINDS:
        own = {row["block"]: row for row in rows if row["kind"] == kind}
        errors = [own[name]["error"] for name in blocks]
        shown = errors if few else [median(errors), max(errors)]
        traces = [row["trace"] for row in own.values()]
        lines.append(
            f"| {kind} | "
            + " | ".join(f"{error:.2f}" for error in shown)
            + f" | {median(row['of the best multiple'] for row in own.values()):.2f}"
            + f" | {min(traces):.2f} to {max(traces):.2f} |"
        )
    return lines


def small_bert(vocabulary: int, pad: int) -> PreTrainedModel:
    """Make a BERT that is small enough for gradients of every example."""
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=128,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=pad,
    )
    return BertForMultipleChoice(config)


def main() -> None:
    """Train both rankers, compare, and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", required=True, help="Folder with the real corpora.")
    data = DataArguments(parser.parse_args().data_dir, train_examples=2000, test_examples=500)
    cnn, tokenizer, (task,) = prepare(RANKER, 0, [(TASK, data)], CurvatureArguments())
    collator = CandidateCollator(tokenizer)
    examples = [task.train[index] for index in range(EXAMPLES)]
    rankers = {"CNN": cnn, "BERT": small_bert(len(tokenizer), tokenizer.pad_token_id)}
    page = ["# How far from the exact Fisher", f"Made by `{command()}`; {EXAMPLES} examples."]
    results: dict[str, Any] = {"command": command(), "versions": versions()}
    for name, start in rankers.items():
        learned = learn(start, task, collator, LEARNING)
        accuracy = learned.accuracy(task.test)
        rows = list(measure(learned.model, examples, collator))
        results[name] = {"accuracy": accuracy, "rows": rows}
        page += [f"## {name}, {100 * accuracy:.1f} % right", "\n".join(_table(rows))]
    (HERE / "sharing.json").write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "sharing.md").write_text("\n\n".join(page) + "\n")


if __name__ == "__main__":
    main()
