"""What other libraries can use of a prior: the second moments of its layers' inputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..errors import PriorError
from ..files import refuse_blocked, replace_file
from ..precision import wide
from .base import BasePrior

__all__ = ["export_covariances"]


def export_covariances(prior: BasePrior, path: str | Path) -> int:
    """Write the ``covariance_file`` of PEFT's CorDA (Yang et al. 2024, arXiv:2406.05223).

    It is a dictionary of A = mean of a aᵀ over all positions, [in, in] without the bias, by the
    names of the linear layers, as ``torch.save`` writes it. PEFT itself sums XᵀX over the positions
    of a text, divided by the square of its largest entry, and takes the mean over texts: of one
    text that is A up to a factor, which CorDA's adapters do not depend on; of several, texts with
    large entries count less there.

    Args:
        prior: With factors, as ``kronecker`` curvature has.
        path: The file to write.

    Returns:
        Number of layers.

    Raises:
        PriorError: No layer has such a factor.
    """
    covariances = dict(_input_moments(prior))
    if not covariances:
        raise PriorError(
            f"prior of task '{prior.task}' knows no second moments of inputs; estimate one with "
            "curvature='kronecker'"
        )
    path = Path(path)
    refuse_blocked(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as partial:
        torch.save(covariances, partial)
    return len(covariances)


def _input_moments(prior: BasePrior) -> Iterator[tuple[str, Tensor]]:
    """A of each linear layer by its name, once in memory for those that share it."""
    known: dict[
        tuple[int, int], tuple[Tensor, Tensor]
    ] = {}  # an id is free when its tensor is gone
    for block in prior.curvature.blocks:
        weight, *bias = block.shapes.values()
        moment = block.operator.input_moment()
        if len(weight) != 2 or moment is None or moment.ndim != 2:
            continue
        size = len(moment) - len(bias)
        key = id(moment), size
        if key not in known:
            known[key] = moment, wide(moment)[:size, :size].contiguous()
        yield block.name, known[key][1]
