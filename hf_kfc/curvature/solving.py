"""Solving F·x = b without forming F."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CurvatureError
from .operators import (
    Diagonal,
    Identity,
    Kronecker,
    KroneckerSum,
    LowRankKronecker,
    Operator,
    trace,
)

__all__ = ["Solution", "solve"]

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


def solve(operator: Operator, b: Tensor) -> Solution:
    """Solve F·x = b in float64.

    A sum of Kronecker products is solved by conjugate gradients (Hestenes & Stiefel 1952), in
    coordinates in which the one product that has its partial traces, Ḡ ⊗ Ā with
    Ā = Σ_s tr(G_s) A_s and Ḡ = Σ_s tr(A_s) G_s, is the identity: a single product takes one step.
    In directions in which Ḡ or Ā has no more than rounding, x is 0.

    Args:
        operator: F; positive semi-definite.
        b: Right-hand side, shape [q, p].

    Returns:
        The best x that was found; look at its residual.

    Raises:
        CurvatureError: F is of a kind that is not solved here.
    """
    operator, b = operator.to(dtype=torch.float64), b.double()
    match operator:
        case Identity() | Diagonal():
            (diagonal,) = operator.state().values()
            x, steps = torch.where(diagonal > 0, b / diagonal, 0.0), 0
        case Kronecker() | KroneckerSum() | LowRankKronecker():
            x, steps = _solve_products(operator, b)
        case _:
            raise CurvatureError(f"F·x = b of a {operator.kind} curvature is not solved here")
    x = x.nan_to_num(0.0, 0.0, 0.0)
    size = float(b.norm())
    return Solution(x, float((b - operator.apply(x)).norm()) / size if size else 0.0, steps)


def _solve_products(operator: Operator, b: Tensor) -> tuple[Tensor, int]:
    products = [term for term in operator.terms() if isinstance(term, Kronecker)]
    A, G = [term.A for term in products], [term.G for term in products]
    W_A = _whitener(A, [trace(factor) for factor in G])
    W_G = _whitener(G, [trace(factor) for factor in A])
    whitened = KroneckerSum(
        torch.stack([_whitened(factor, W_A) for factor in A]),
        torch.stack([_whitened(factor, W_G) for factor in G]),
    )
    V_A, V_G = _transposed(W_A), _transposed(W_G)
    y, steps = _conjugate_gradients(whitened, _times(V_A, _times(V_G, b).T).T)
    return _times(W_A, _times(W_G, y).T).T, steps


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


def _conjugate_gradients(operator: Operator, b: Tensor) -> tuple[Tensor, int]:
    """Return the iterate of least residual, and how many there were."""
    x, residual = torch.zeros_like(b), b.clone()
    direction, squared = residual.clone(), float(residual.square().sum())
    best, least, goal = x, squared, _TOLERANCE**2 * squared
    for step in range(_ITERATIONS):
        if least <= goal:
            return best, step
        product = operator.apply(direction)
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
