"""A prior in fewer bytes, and how much of its curvature that loses."""

from __future__ import annotations

from dataclasses import replace

import torch
from tqdm.auto import tqdm

from ..curvature import Compressor
from ..errors import CurvatureError, PriorError
from .base import BasePrior
from .content import Parts
from .provenance import compounded

__all__ = ["compressed_parts"]


def compressed_parts(prior: BasePrior, rank: int | None, dtype: torch.dtype | None) -> Parts:
    """Store a prior's curvature in fewer bytes; the anchor stays, and provenance has the errors."""
    if rank is None and dtype is None:
        raise PriorError(
            f"prior of task '{prior.task}' would stay as it is; give a rank, a dtype or both"
        )
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
