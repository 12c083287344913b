"""Solving F·x = b by conjugate gradients (Hestenes & Stiefel 1952), without forming F."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Solution", "conjugate_gradients", "whitened", "whitener"]

_ITERATIONS = 500
_TOLERANCE = 1e-8
# Eigenvalues of a factor below this share of its trace are the rounding of float32.
_ROUNDING = 1e-7


@dataclass(frozen=True)
class Solution:
    """An x with F·x ≈ b.

    Args:
        x: Shape [q, p], float64, always finite.
        residual: ‖b − F·x‖ / ‖b‖; 0 of b = 0.
        iterations: Of conjugate gradients.
    """

    x: Tensor
    residual: float
    iterations: int = 0


def conjugate_gradients(apply: Callable[[Tensor], Tensor], b: Tensor) -> tuple[Tensor, int]:
    """Return the iterate of least residual, and how many there were.

    Args:
        apply: Multiplies by a positive semi-definite F.
        b: Right-hand side.
    """
    x, residual = torch.zeros_like(b), b.clone()
    direction, squared = residual.clone(), float(residual.square().sum())
    best, least, goal = x, squared, _TOLERANCE**2 * squared
    for step in range(_ITERATIONS):
        if least <= goal:
            return best, step
        product = apply(direction)
        curvature = float((direction * product).sum())
        if not curvature > 0:  # F is singular here, or rounding has made it indefinite
            return best, step
        x = x + squared / curvature * direction
        residual -= squared / curvature * product
        before, squared = squared, float(residual.square().sum())
        if squared < least:
            best, least = x, squared
        direction = residual + squared / before * direction
    return best, _ITERATIONS


def whitener(factors: list[Tensor], weights: list[Tensor]) -> Tensor:
    """Return W with Wᵀ (Σ_s w_s A_s) W = I, shape [p, k], or [p] of diagonals."""
    mean = torch.zeros_like(factors[0])
    for factor, weight in zip(factors, weights, strict=True):
        mean += weight * factor
    values, vectors = (mean, None) if mean.ndim == 1 else torch.linalg.eigh(mean)
    used = values > _ROUNDING * values.sum()
    if vectors is None:
        return torch.where(used, values.rsqrt(), 0.0)
    W: Tensor = vectors[:, used] * values[used].rsqrt()
    return W


def whitened(factor: Tensor, W: Tensor) -> Tensor:
    """Return Wᵀ A W of a factor; a vector W is a diagonal."""
    return factor * W.square() if W.ndim == 1 else W.T @ factor @ W
