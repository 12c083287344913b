"""What other libraries can use of a prior: the second moments of its layers' inputs."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..curvature import Block, Operator
from ..curvature_arguments import Sharing
from ..errors import PriorError
from ..files import path_of, refuse_blocked, replace_file
from ..precision import wide
from .base import BasePrior

__all__ = ["export_covariances"]

logger = logging.getLogger(__name__)


def export_covariances(prior: BasePrior, path: str | Path) -> int:
    """Write second moments of inputs as PEFT's CorDA reads them (Yang et al., arXiv:2406.05223).

    It is a dictionary of A = mean of a aᵀ over all positions, [in, in] without the bias, by the
    names of the linear layers, as ``torch.save`` writes it. PEFT itself sums XᵀX over the positions
    of a text, divided by the square of its largest entry, and takes the mean over texts: of one
    text that is A up to a factor, which CorDA's adapters do not depend on; of several, texts with
    large entries count less there. The Gram matrices of RegMean (arXiv:2212.09849) and the Hessian
    of GPTQ (arXiv:2210.17323) are multiples of A.

    Args:
        path: The file to write, CorDA's ``covariance_file``.

    Returns:
        Number of layers; those that have a diagonal alone are left out, and a warning names one. So
        does one of layers whose A is not exact: of a prior that was compressed or merged, EKFAC, or
        ``sharing="reduce"``, whose A is of each example's mean.

    Raises:
        PriorError: No layer has such a factor, as ``kronecker`` curvature has, or the file is there
            and no older export.

    Example:
        >>> prior.export_covariances("covariances.pt")  # doctest: +SKIP
        >>> corda = CordaConfig(covariance_file="covariances.pt")  # doctest: +SKIP
    """
    path = path_of(path)
    _refuse_other_file(path)
    covariances = dict(_input_moments(prior))
    if not covariances:
        raise PriorError(
            f"prior of task '{prior.task}' knows no second moments of inputs; estimate one with "
            "curvature='kronecker'"
        )
    layers = [b.name for b in prior.curvature.blocks if _is_matrix(b) and not b.is_embedding]
    left = [name for name in layers if name not in covariances]
    if left:
        logger.warning(
            "%d layers of prior '%s' have no second moment of inputs and are left out (%s, ...); "
            "CorDA must not target them",
            len(left),
            prior.task,
            left[0],
        )
    _tell_what_is_rough(prior, covariances)
    refuse_blocked(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as partial:
        torch.save(covariances, partial)
    return len(covariances)


def _refuse_other_file(path: Path) -> None:
    """Make sure that a file may be written: absent, empty or an older export."""
    if path.is_file() and path.stat().st_size and not _is_export(path):
        raise PriorError(
            f"{path} is there and holds no covariances; give another file, so that nothing is lost"
        )


def _is_export(path: Path) -> bool:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # of files of others torch makes errors of many kinds
        return False
    # A model's weights are no export either.
    return isinstance(found, dict) and all(
        isinstance(A, Tensor) and A.ndim == 2 and A.shape[0] == A.shape[1] for A in found.values()
    )


def _tell_what_is_rough(prior: BasePrior, covariances: Collection[str]) -> None:
    blocks = [block for block in prior.curvature.blocks if block.name in covariances]
    is_of_means = Sharing.REDUCE in (prior.provenance.sharing or "")
    rough = {b.name: said for b in blocks if (said := _roughness(b.operator, is_of_means))}
    if rough:
        logger.warning(
            "Covariances of %d layers of prior '%s' (%s, ...) are not those of the inputs but %s; "
            "export a prior of curvature='kronecker' and sharing='expand' before it is compressed "
            "or merged",
            len(rough),
            prior.task,
            next(iter(rough)),
            " or ".join(dict.fromkeys(rough.values())),
        )


def _roughness(operator: Operator, is_of_means: bool) -> str:
    """Say what A has lost; nothing, if it is that of one product as it was estimated.

    Args:
        operator: Of a layer.
        is_of_means: Whether each example is read as the mean of its positions.
    """
    factors = [A for _, A in operator.stored_factors()]
    ranks = {A.columns.shape[1] for A in factors if A.columns is not None}
    said = [] if factors else ["weighed by gradients"]
    said += ["of the means of examples"] * is_of_means
    said += [f"mixed of {len(factors)} products"] * (len(factors) > 1)
    said += [f"of rank {rank}" for rank in ranks]
    said += ["in bfloat16"] * any(A.values.dtype == torch.bfloat16 for A in factors)
    return ", ".join(said)


def _input_moments(prior: BasePrior) -> Iterator[tuple[str, Tensor]]:
    """A of each linear layer by its name, once in memory for those that share it."""
    # With the tensor: its id is free when it is gone.
    known: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    for block in filter(_is_matrix, prior.curvature.blocks):
        moment = block.operator.input_moment()
        if moment is None or moment.ndim != 2:
            continue
        size = len(moment) - (len(block.shapes) - 1)  # without the bias
        key = id(moment), size
        if key not in known:
            known[key] = moment, wide(moment)[:size, :size].contiguous()
        yield block.name, known[key][1]


def _is_matrix(block: Block) -> bool:
    return len(next(iter(block.shapes.values()))) == 2
