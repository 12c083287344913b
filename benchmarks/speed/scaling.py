"""What estimation, penalty and prior cost against width, depth, vocabulary and number of tasks.

    python benchmarks/speed/scaling.py

One of the four is varied at a time. For each model: seconds of estimation per example, of a plain
forward and backward pass over the same batch in the same round, of one penalty with its gradient,
with the priors as estimated and compressed, and the bytes of their factors and anchors. The
exponents are slopes of a least-squares line through the logarithms;
docs/explanation/speed.md has them on paper.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from common import alternate, command_line, goal, ratio, start, timed, write
from torch.nn import functional
from torch.utils.data import default_collate
from workload import batches_of, encoder, inputs_of, ranking_examples

from hf_kfc import ConsolidationPrior, CurvatureArguments, estimate_curvature
from hf_kfc.training.penalty import ConsolidationPenalty

AXES: dict[str, tuple[int, ...]] = {
    "width": (128, 256, 384, 768),
    "depth": (1, 2, 4, 8),
    "vocabulary": (2000, 8000, 32000),
    "tasks": (1, 2, 5, 10),
}
BASE = {"width": 256, "depth": 2, "vocabulary": 8000, "tasks": 1}
TINY = {"width": (16, 32), "depth": (1, 2), "vocabulary": (100, 200), "tasks": (1, 2)}
TINY_BASE = {"width": 16, "depth": 1, "vocabulary": 100, "tasks": 1}
CANDIDATES, TOKENS, BATCH, DAMPING, RANK = 6, 36, 8, 0.1, 32
ESTIMATION, PLAIN, PENALTY = "estimation, s per example", "plain, s per example", "penalty, s"
COMPRESSED, SIZE = f"penalty of rank {RANK}, s", "priors, MiB"
MEASURED = (ESTIMATION, PLAIN, PENALTY, COMPRESSED, SIZE)
GOALS = {"width": 2.05, "depth": 1.05, "tasks": 1.05}
"""The largest power by which a cost may grow; a fit is no more exact."""


def work_of(
    point: dict[str, int], device: str
) -> tuple[dict[str, Callable[[], None]], Sequence[ConsolidationPrior]]:
    """Make what is timed for one model, and its priors."""
    model = encoder(point["width"], point["depth"], point["vocabulary"]).to(device)
    arguments = CurvatureArguments(curvature_batch_size=BATCH)
    # Each task has examples and factors of its own: one prior used twice would stay in the cache.
    tasks = [
        ranking_examples(2 * BATCH, CANDIDATES, TOKENS, point["vocabulary"], seed=seed)
        for seed in range(point["tasks"])
    ]
    priors = [
        ConsolidationPrior.estimate(model, own, default_collate, arguments, task=f"task{i}")
        for i, own in enumerate(tasks)
    ]
    batches = batches_of(tasks[0], BATCH, device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1e-3 * torch.randn_like(parameter))
    smaller = [prior.compress(rank=min(RANK, point["width"] // 2)) for prior in priors]
    whole, compressed = (
        ConsolidationPenalty(model, own, [1.0] * len(own), DAMPING) for own in (priors, smaller)
    )

    def estimate() -> None:
        estimate_curvature(model, tasks[0], default_collate, arguments)

    def plain() -> None:
        for batch in batches:
            logits = model(**inputs_of(batch)).logits
            functional.cross_entropy(logits, batch["labels"]).backward()
            model.zero_grad(set_to_none=True)

    def penalise(penalty: ConsolidationPenalty) -> None:
        penalty()[0].backward()
        model.zero_grad(set_to_none=True)

    penalties = {PENALTY: partial(penalise, whole), COMPRESSED: partial(penalise, compressed)}
    return {ESTIMATION: estimate, PLAIN: plain, **penalties}, priors


def measure(
    point: dict[str, int], device: str, repetitions: int
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Return a table row for one model, and the seconds of every round."""
    work, priors = work_of(point, device)
    seconds = alternate({n: timed(own, device) for n, own in work.items()}, repetitions)
    runs = {ESTIMATION: 2 * BATCH, PLAIN: 2 * BATCH}
    medians = {n: statistics.median(own) / runs.get(n, 1) for n, own in seconds.items()}
    over = ratio(seconds, ESTIMATION, PLAIN)["median"]
    row = point | medians | {"estimation over plain": over, SIZE: _bytes(priors) / 2**20}
    return row, seconds


def exponents(rows: Sequence[dict[str, Any]], axis: str) -> dict[str, Any]:
    """Fit the power of a quantity by which each cost grows."""
    sizes = [math.log(row[axis]) for row in rows]
    return {"against": axis} | {
        name: float(np.polyfit(sizes, [math.log(row[name]) for row in rows], 1)[0])
        for name in MEASURED
    }


def main() -> None:
    """Measure and write the results."""
    parser = command_line(__doc__)
    arguments = start(parser)
    axes, base = (TINY, TINY_BASE) if arguments.tiny else (AXES, BASE)
    if arguments.tiny:
        arguments.repetitions = 1
    rows: list[dict[str, Any]] = []
    fitted = []
    rounds: dict[str, list[float]] = {}
    for axis, values in axes.items():
        own = []
        for value in values:
            point = base | {axis: value}
            row, seconds = measure(point, arguments.device, arguments.repetitions)
            own.append({"varied": axis, **row})
            rounds |= {f"{axis} {value}: {name}": spent for name, spent in seconds.items()}
        rows += own
        fitted.append(exponents(own, axis))
    goals = [
        goal(f"{name.split(',')[0]}, power of {row['against']}", row[name], at_most=most)
        for row in fitted
        if (most := GOALS.get(row["against"]))
        for name in (ESTIMATION, PENALTY, COMPRESSED, SIZE)
        if not (name == ESTIMATION and row["against"] == "tasks")
    ]
    write(
        arguments,
        "scaling",
        sizes={
            "examples per forward pass": BATCH,
            "candidates": CANDIDATES,
            "tokens": TOKENS,
            "rank of the compressed": RANK,
        },
        rows=rows,
        goals=goals,
        rounds=rounds,
        exponents=fitted,
    )


def _bytes(priors: Sequence[ConsolidationPrior]) -> int:
    """Count what the priors' tensors take; those that layers share count once."""
    tensors = [t for p in priors for t in p.anchor.values()]
    tensors += [t for p in priors for b in p.curvature.blocks for t in b.operator.state().values()]
    return sum({t.untyped_storage().data_ptr(): t.nbytes for t in tensors}.values())


if __name__ == "__main__":
    main()
