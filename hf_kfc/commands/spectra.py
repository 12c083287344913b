"""The eigenvalues of a curvature, without ever forming its matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..curvature import Diagonal, Identity, Kronecker, KroneckerEigen, Operator
from ..errors import CurvatureError

__all__ = ["DAMPING", "Spectrum", "spectrum_of"]

DAMPING = 0.1
"""The relative damping that conditions are told for: the trainer's default."""


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of a block's F in a few numbers.

    Args:
        largest: The largest.
        median: The middle one.
        effective_rank: tr(F)² / tr(F²): how many directions carry the curvature; 0 if none does.
        condition: Largest over smallest once F is damped; None of F = 0.
    """

    largest: float
    median: float
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
        case _:
            raise CurvatureError(
                f"the eigenvalues of a {operator.kind} curvature are unknown; add a rule to "
                "hf_kfc.commands.spectra"
            )


def _eigenvalues(factor: Tensor) -> Tensor:
    return factor if factor.ndim == 1 else torch.linalg.eigvalsh(factor.double())
