"""Solving F·x = b by conjugate gradients (Hestenes & Stiefel 1952), without forming F."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .factors import trace

__all__ = ["Solution", "conjugate_gradients", "solve_products"]

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


def solve_products(
    A: list[Tensor],
    G: list[Tensor],
    b: Tensor,
    apply: Callable[[list[Tensor], list[Tensor], Tensor], Tensor],
) -> tuple[Tensor, int]:
    """Solve Σ_s G_s x A_s = b in coordinates in which one product is the identity.

    It is the product that has the partial traces of the sum, Ḡ ⊗ Ā with Ā = Σ_s tr(G_s) A_s and
    Ḡ = Σ_s tr(A_s) G_s: so a single product takes one step. In directions in which Ḡ or Ā has no
    more than rounding, x is 0.

    Args:
        A: Input factors, each [p, p] or [p].
        G: Output factors, each [q, q] or [q].
        b: Shape [q, p].
        apply: Multiplies a matrix by a sum of products.

    Returns:
        x, and the number of iterations.
    """
    W_A = _whitener(A, [trace(factor) for factor in G])
    W_G = _whitener(G, [trace(factor) for factor in A])
    white_A = [_whitened(factor, W_A) for factor in A]
    white_G = [_whitened(factor, W_G) for factor in G]
    V_A, V_G = _transposed(W_A), _transposed(W_G)
    y, steps = conjugate_gradients(
        lambda x: apply(white_A, white_G, x), _times(V_A, _times(V_G, b).T).T
    )
    return _times(W_A, _times(W_G, y).T).T, steps


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


def _whitener(factors: list[Tensor], weights: list[Tensor]) -> Tensor:
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


def _whitened(factor: Tensor, W: Tensor) -> Tensor:
    return factor * W.square() if W.ndim == 1 else W.T @ factor @ W


def _times(W: Tensor, x: Tensor) -> Tensor:
    """Return W x; a vector W is a diagonal."""
    return W[:, None] * x if W.ndim == 1 else W @ x


def _transposed(W: Tensor) -> Tensor:
    return W if W.ndim == 1 else W.T
