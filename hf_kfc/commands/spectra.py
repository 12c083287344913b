"""The eigenvalues of a curvature, without ever forming its matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..curvature import (
    Diagonal,
    Identity,
    Kronecker,
    KroneckerEigen,
    KroneckerSum,
    LowRankKronecker,
    Operator,
)
from ..errors import CurvatureError

__all__ = ["DAMPING", "Spectrum", "spectrum_of"]

DAMPING = 0.1
"""The relative damping that conditions are told for: the trainer's default."""
_POWER_STEPS = 1000
_POWER_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of a block's F in a few numbers.

    Args:
        largest: The largest.
        median: The middle one; None of a sum of Kronecker products, whose eigenvalues are known
            only with its matrix.
        effective_rank: tr(F)² / tr(F²): how many directions carry the curvature; 0 if none does.
        condition: Largest over smallest once F is damped; None of F = 0 and of a sum.
    """

    largest: float
    median: float | None
    effective_rank: float
    condition: float | None


def spectrum_of(operator: Operator, shape: tuple[int, int]) -> Spectrum:
    """Summarise the eigenvalues of a curvature.

    Args:
        operator: The curvature of one block.
        shape: (q, p) of the block.

    Raises:
        CurvatureError: The operator is of a kind that is not known here.
    """
    if isinstance(operator, KroneckerSum):
        return _of_sum(operator.to(dtype=torch.float64), shape)
    factors = [values.double().clamp(min=0) for values in _factors(operator, shape)]
    largest, rank, condition = 1.0, 1.0, 1.0
    for values in factors:
        mean = float(values.mean())
        largest *= float(values.max())
        if mean == 0:
            rank = 0.0
            continue
        rank *= float(values.sum()) ** 2 / float(values.square().sum())
        shift = DAMPING * mean
        condition *= (float(values.max()) + shift) / (float(values.min()) + shift)
    products = factors[0] if len(factors) == 1 else torch.outer(*factors).flatten()
    return Spectrum(largest, float(products.median()), rank, condition if rank else None)


def _of_sum(operator: KroneckerSum, shape: tuple[int, int]) -> Spectrum:
    """Find the largest eigenvalue by power iteration; traces need no eigenvalues."""
    total = float(operator.trace(shape))
    squared = float(operator.inner(operator, shape))
    vector = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(
        operator.A.device
    )
    largest = 0.0
    for _ in range(_POWER_STEPS):
        vector = operator.apply(vector / vector.norm())
        before, largest = largest, float(vector.norm())
        if largest - before <= _POWER_TOLERANCE * largest:
            break
    return Spectrum(largest, None, total**2 / squared if squared else 0.0, None)


def _factors(operator: Operator, shape: tuple[int, int]) -> list[Tensor]:
    """Return sets of numbers; F's eigenvalues are the products of one from each."""
    match operator:
        case Identity():
            return [operator.scale.expand(shape).flatten()]
        case Diagonal():
            return [operator.diagonal.flatten()]
        case KroneckerEigen():
            return [operator.second_moments.flatten()]
        case Kronecker():
            return [_eigenvalues(operator.A), _eigenvalues(operator.G)]
        case LowRankKronecker():
            return _factors(operator.kronecker_terms()[0], shape)
        case _:
            raise CurvatureError(
                f"the eigenvalues of a {operator.kind} curvature are unknown; add a rule to "
                "hf_kfc.commands.spectra"
            )


def _eigenvalues(factor: Tensor) -> Tensor:
    return factor if factor.ndim == 1 else torch.linalg.eigvalsh(factor.double())
