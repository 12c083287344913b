"""Bytes of a prior on disk, over the bytes of its model.

    python benchmarks/speed/size.py --ranker encoder
    python benchmarks/speed/size.py --ranker cnn

What is published leaves out the rows of tokens that few examples hold, as ``push_to_hub`` does.
The anchor is stored once more, or pointed at where the model itself is on the Hub. Bytes say
nothing of what a compression costs; docs/explanation/speed.md has the forgetting.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import command_line, goal, start, write
from safetensors import safe_open
from torch.utils.data import default_collate
from training import RANKERS, examples_for, ranker
from workload import parameter_bytes

from hf_kfc import ConsolidationPrior, CurvatureArguments
from hf_kfc.priors.privacy import without_rare_inputs

MIB = 2**20
ANCHOR = "anchor"
POINTED = "over the model, anchor pointed at"


def bytes_of(prior: ConsolidationPrior) -> tuple[int, int]:
    """Save a prior; return the bytes of the folder, and those of the anchor among them."""
    anchor = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prior"
        prior.save_pretrained(path)
        for file in path.glob("*.safetensors"):
            with safe_open(file, framework="pt") as tensors:
                own = [name for name in tensors.keys() if name.startswith(ANCHOR)]  # noqa: SIM118
                anchor += sum(tensors.get_tensor(name).nbytes for name in own)
        return sum(file.stat().st_size for file in path.iterdir()), anchor


def main() -> None:
    """Measure and write the results."""
    parser = command_line(__doc__)
    parser.add_argument("--ranker", choices=RANKERS, default="encoder", help="model of the prior")
    parser.add_argument("--examples", type=int, default=500, help="examples of the prior")
    parser.add_argument("--rank", type=int, default=64, help="of the compressed factors")
    arguments = start(parser)
    if arguments.tiny:
        arguments.examples, arguments.rank = 20, 4
    model = ranker(arguments.ranker, arguments.tiny).to(arguments.device)
    examples = examples_for(model, arguments.examples, arguments.tiny)
    whole = ConsolidationPrior.estimate(
        model, examples, default_collate, CurvatureArguments(curvature_batch_size=8), task="task"
    )
    published = without_rare_inputs(whole)
    rank = arguments.rank
    variants: dict[str, Callable[[], ConsolidationPrior]] = {
        "whole, float32": lambda: whole,
        "published, float32": lambda: published,
        "published, bfloat16": lambda: published.compress(dtype=torch.bfloat16),
        f"published, rank {rank}": lambda: published.compress(rank=rank),
        f"published, rank {rank}, bfloat16": lambda: published.compress(
            rank=rank, dtype=torch.bfloat16
        ),
    }
    model_bytes = parameter_bytes(model)
    rows: list[dict[str, Any]] = []
    for name, make in variants.items():
        total, anchor = bytes_of(make())
        rows.append(
            {
                "prior": name,
                "MiB": total / MIB,
                "over the model": total / model_bytes,
                POINTED: (total - anchor) / model_bytes,
            }
        )
    goals = [
        goal(f"bytes of '{row['prior']}' over the model's", row[POINTED], at_most=0.5)
        for row in rows
        if row["prior"] not in ("whole, float32", "published, float32")
    ]
    write(
        arguments,
        f"size-{arguments.ranker}",
        sizes={
            "ranker": arguments.ranker,
            "model (MiB)": round(model_bytes / MIB, 1),
            "examples": arguments.examples,
            "rank": rank,
        },
        rows=rows,
        goals=goals,
    )


if __name__ == "__main__":
    main()
