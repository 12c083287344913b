"""Runs cases on two processes; ``accelerate launch`` starts it for test_gradients.py."""

from __future__ import annotations

import sys
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tiny.cases import CHECKPOINTING, TRAINS_SHARDED, Case, run
from torch import distributed as dist

BERT = Case("bert", accumulation=4, batch_size=1)
CASES = [
    *(
        Case(model, sharded, accumulation, batch_size)
        for model in ("bert", "cnn")
        for sharded in (False, True)
        for accumulation, batch_size in ((1, 2), (4, 1), (4, 2))
    ),
    *(
        replace(BERT, sharded=sharded, **changes)
        for sharded in (False, True)
        for changes in (
            {"arguments": ((CHECKPOINTING, True),)},
            {"masked": False},
            {"frozen": "bert.embeddings"},
            {"evaluated": True, "accumulation": 1},
            {"arguments": (("eval_strategy", "steps"), ("eval_steps", 1)), "epochs": 2},
            {"arguments": (("penalty_every", 2),)},
            {"probes": True},
            {"probes": True, "accumulation": 1, "batch_size": 2},
            {"probes": True, "arguments": (("probe_every", 2),)},
            {"probes": True, "evaluated": True, "arguments": ((CHECKPOINTING, True),)},
            {"probes": True, "model": "cnn", "batch_size": 2},
            {"arguments": (("max_grad_norm", 0.1),), "accumulation": 1},
        )
    ),
]


def main(directory: Path) -> None:
    """Run every case and write what the processes saw, rank by rank, by the case's name."""
    results: dict[str, list[Any]] = {}
    for index, case in enumerate(CASES):
        if case.sharded and not TRAINS_SHARDED:
            continue
        folder = directory / f"case{index}"
        try:
            mine: Any = run(case, folder)
        except Exception:
            mine = traceback.format_exc()  # shown by this case's test
        ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, mine)
        results[str(case)] = ranks
    if dist.get_rank() == 0:
        torch.save(results, directory / "results.pt")
    dist.destroy_process_group()  # its threads abort a process that ends while they run


if __name__ == "__main__":
    main(Path(sys.argv[1]))
