"""The eigenvalues of a curvature, without ever forming its matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..curvature import Operator
from .options import DAMPING

__all__ = ["Spectrum", "spectrum_of"]

_POWER_STEPS = 1000
_POWER_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of a block's F in a few numbers.

    Args:
        largest: The largest.
        median: The middle one; None where the eigenvalues are known only with a large matrix, as
            those of a sum of Kronecker products.
        effective_rank: tr(F)² / tr(F²): how many directions carry the curvature; 0 if none does.
        condition: Largest over smallest once F is damped; None of F = 0 and of such a sum.
    """

    largest: float
    median: float | None
    effective_rank: float
    condition: float | None


def spectrum_of(operator: Operator, shape: tuple[int, int]) -> Spectrum:
    """Summarise the eigenvalues of the curvature of a block, its shape being (q, p)."""
    operator = operator.to(dtype=torch.float64)
    total, squared = float(operator.trace(shape)), float(operator.inner(operator, shape))
    rank = total**2 / squared if squared else 0.0
    values, damped = operator.spectrum(shape), operator.damped(DAMPING).spectrum(shape)
    if values is None or damped is None:
        return Spectrum(_largest(operator, shape), None, rank, None)
    lowest = float(damped.min())
    condition = float(damped.max()) / lowest if rank and lowest > 0 else None
    values = values.clamp(min=0)
    return Spectrum(float(values.max()), float(values.median()), rank, condition)


def _largest(operator: Operator, shape: tuple[int, int]) -> float:
    """Find the largest eigenvalue by power iteration."""
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(shape, dtype=torch.float64, generator=generator)
    largest = 0.0
    for _ in range(_POWER_STEPS):
        vector = operator.apply(vector / vector.norm())
        before, largest = largest, float(vector.norm())
        if largest - before <= _POWER_TOLERANCE * largest:
            break
    return largest
