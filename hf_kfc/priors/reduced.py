"""A prior in fewer bytes, and how much of its curvature that loses; one of fewer blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from tqdm.auto import tqdm

from ..curvature import Block, Compressor
from ..errors import CurvatureError, PriorError
from ..values import is_whole
from .base import BasePrior, tell_left_out
from .content import Parts
from .provenance import compounded
from .schema import as_patterns, is_meant

__all__ = ["compressed_parts", "parts_without"]


def compressed_parts(prior: BasePrior, rank: int | None, dtype: torch.dtype | None) -> Parts:
    """Store a prior's curvature in fewer bytes; the anchor stays, and provenance has the errors."""
    if rank is None and dtype is None:
        raise PriorError(
            f"prior of task '{prior.task}' would stay as it is; give a rank, a dtype or both"
        )
    if rank is not None and not is_whole(rank):
        raise PriorError(f"rank {rank!r:.40} is no whole number; give one of at least 1")
    blocks, errors = [], {}
    known = prior.provenance.approximation_errors
    name = "the arguments"
    try:
        compressor = Compressor(rank, dtype)
        for block in tqdm(prior.curvature.blocks, desc="compressing", unit="layer", disable=None):
            name = block.name
            compressed = compressor(block.operator, block.shape)
            blocks.append(replace(block, operator=compressed.operator))
            errors[block.name] = compounded(known.get(block.name, 0.0), compressed.error)
    except CurvatureError as error:
        raise PriorError(
            f"prior of task '{prior.task}' cannot be compressed: {name}: {error}"
        ) from None
    curvature = replace(prior.curvature, blocks=tuple(blocks))
    return prior.anchor, curvature, replace(prior.provenance, approximation_errors=errors)


def parts_without(prior: BasePrior, patterns: str | Sequence[str]) -> Parts:
    """Leave blocks out of a prior; their parameters are ignored, and probes are left out aloud."""
    patterns = as_patterns(patterns, "patterns")
    left, out = list[Block](), list[Block]()
    missed = dict.fromkeys(patterns)
    for block in prior.curvature.blocks:
        names = (block.name, *block.shapes)
        matched = [p for p in patterns if any(is_meant(name, p) for name in names)]
        (out if matched else left).append(block)
        for pattern in matched:
            missed.pop(pattern, None)
    if missed or not left:
        what = f"no block is called '{next(iter(missed))}'" if missed else "nothing would be left"
        blocks = ", ".join(block.name for block in prior.curvature.blocks)
        raise PriorError(f"prior of task '{prior.task}': {what}; its blocks are {blocks}")
    tell_left_out(
        prior,
        "a model that differs in other blocks may decide something else; give them to the trainer "
        "where it decides the same",
    )
    ignored = {*prior.curvature.ignored, *(name for block in out for name in block.shapes)}
    curvature = replace(prior.curvature, blocks=tuple(left), ignored=tuple(sorted(ignored)))
    kept = {block.name for block in left}
    origin = prior.provenance
    provenance = replace(
        origin,
        dropped_inputs={n: v for n, v in origin.dropped_inputs.items() if n in kept},
        approximation_errors={n: v for n, v in origin.approximation_errors.items() if n in kept},
    )
    anchor = {n: value for n, value in prior.anchor.items() if n in curvature.parameters}
    return anchor, curvature, provenance
