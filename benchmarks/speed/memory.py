"""Peak memory of training with one prior, over that of plain training.

    python benchmarks/speed/memory.py --ranker encoder
    python benchmarks/speed/memory.py --ranker cnn

One process makes the model and the priors and saves them; every measured run is a fresh process
that loads what it needs from the folder and trains some steps. What is published leaves out the
rows of tokens that few examples hold, as ``push_to_hub`` does. On a GPU the figure is PyTorch's
peak of allocated memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import alternate, command_line, goal, start, write
from training import RANKERS, TASK_EXAMPLES, examples_for, make_prior, ranker, train
from transformers import AutoModelForMultipleChoice
from workload import parameter_bytes

from hf_kfc import ConsolidationPrior
from hf_kfc.priors.privacy import without_rare_inputs

MIB = 2**20
STEPS = 3
SETUPS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "plain": (None, {}),
    "as estimated": ("whole", {}),
    "as estimated, bfloat16 penalty": ("whole", {"penalty_dtype": "bfloat16"}),
    "published": ("published", {}),
    "published, bfloat16": ("half", {}),
    "published, low rank, bfloat16": ("compressed", {}),
}
"""The folder of the prior, and fields of ConsolidationArguments."""


def prepare(folder: Path, kind: str, tiny: bool, rank: int) -> None:
    """Save a model, its prior, and the prior as it can be published."""
    model = ranker(kind, tiny)
    model.save_pretrained(folder / "model")
    # Of all examples: what is published depends on how many hold a token.
    whole = make_prior(model, 0, tiny, TASK_EXAMPLES)
    published = without_rare_inputs(whole)
    for name, prior in {
        "whole": whole,
        "published": published,
        "half": published.compress(dtype=torch.bfloat16),
        "compressed": published.compress(rank=rank, dtype=torch.bfloat16),
    }.items():
        prior.save_pretrained(folder / name)


def peak_of(setup: str, folder: Path, arguments: argparse.Namespace) -> float:
    """Train as one set-up does, and return this process's peak memory in MiB."""
    name, penalty = SETUPS[setup]
    model = AutoModelForMultipleChoice.from_pretrained(folder / "model")
    priors = None if name is None else [ConsolidationPrior.from_pretrained(folder / name)]
    count = arguments.batch_size * STEPS
    train(
        model,
        examples_for(model, count, arguments.tiny),
        batch_size=arguments.batch_size,
        steps=STEPS,
        device=arguments.device,
        priors=priors,
        **penalty,
    )
    return peak_memory(arguments.device)


def peak_memory(device: str) -> float:
    """Return what this process has needed at most so far, in MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / MIB
    # Not getrusage's ru_maxrss: a process inherits that of the one that started it.
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(peak) / 1024


def measured(setup: str, folder: Path) -> float:
    """Start this script anew for one set-up."""
    command = [sys.executable, __file__, *sys.argv[1:], "--work", str(folder), "--setup", setup]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure and write the results."""
    parser = command_line(__doc__)
    parser.add_argument("--ranker", choices=RANKERS, default="encoder", help="model to train")
    parser.add_argument("--batch_size", type=int, default=8, help="ranking examples of a step")
    parser.add_argument("--rank", type=int, default=64, help="of the compressed prior")
    for name in ("--work", "--setup"):  # of the processes that this one starts
        parser.add_argument(name, help=argparse.SUPPRESS)
    arguments = start(parser)
    if arguments.tiny:
        arguments.batch_size, arguments.rank, arguments.repetitions = 2, 4, 1
    if arguments.setup == "prepare":
        prepare(Path(arguments.work), arguments.ranker, arguments.tiny, arguments.rank)
        print(0)
        return
    if arguments.setup:
        print(json.dumps(peak_of(arguments.setup, Path(arguments.work), arguments)))
        return
    model_mib = parameter_bytes(ranker(arguments.ranker, arguments.tiny)) / MIB
    with tempfile.TemporaryDirectory() as folder:
        measured("prepare", Path(folder))
        peaks = alternate(
            {name: lambda name=name: measured(name, Path(folder)) for name in SETUPS},
            arguments.repetitions,
        )
    medians = {name: statistics.median(own) for name, own in peaks.items()}
    over = {name: (own - medians["plain"]) / model_mib for name, own in medians.items()}
    rows = [
        {
            "set-up": name,
            "peak (MiB)": medians[name],
            "over plain, in models": over[name],
            "least to most (MiB)": f"{min(own):.0f} to {max(own):.0f}",
        }
        for name, own in peaks.items()
    ]
    goals = [
        goal(f"{name}: peak over plain, in models", over[name], at_most=2)
        for name in SETUPS
        if name != "plain"
    ]
    write(
        arguments,
        f"memory-{arguments.ranker}",
        sizes={
            "ranker": arguments.ranker,
            "model (MiB)": round(model_mib, 1),
            "batch": arguments.batch_size,
            "rank of the compressed prior": arguments.rank,
        },
        rows=rows,
        goals=goals,
        rounds=peaks,
        unit="MiB",
    )


if __name__ == "__main__":
    main()
