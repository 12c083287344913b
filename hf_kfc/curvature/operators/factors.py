"""Arithmetic of symmetric factors: matrices [p, p], or vectors [p] that stand for diagonals."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "damped_factor",
    "diagonal_in",
    "eigenvalues",
    "inner_of_factors",
    "seen_from",
    "spread_columns",
    "trace",
]


def trace(factor: Tensor) -> Tensor:
    """Return the trace of a factor, a matrix [p, p] or a diagonal [p]."""
    return factor.sum() if factor.ndim == 1 else factor.trace()


def eigenvalues(factor: Tensor) -> Tensor:
    """Return the eigenvalues [p] of a factor, a matrix or a diagonal; of a matrix in float64."""
    if factor.ndim == 1:
        return factor
    values: Tensor = torch.linalg.eigvalsh(factor.double())
    return values


def damped_factor(factor: Tensor, epsilon: float, *, diagonal: bool) -> Tensor:
    """Return a factor plus ε times its mean eigenvalue times the identity.

    Args:
        factor: Matrices [..., p, p], or diagonals [..., p].
        epsilon: Relative damping ε.
        diagonal: Whether it holds diagonals.
    """
    if diagonal:
        return factor + epsilon * factor.mean(-1, keepdim=True)
    damped = factor.clone()
    entries = damped.diagonal(dim1=-2, dim2=-1)
    entries += epsilon * entries.mean(-1, keepdim=True)
    return damped


def inner_of_factors(first: Tensor, second: Tensor) -> Tensor:
    """Return ⟨A, A'⟩ of two factors."""
    if first.ndim == second.ndim:
        return (first * second).sum()
    matrix, vector = (first, second) if first.ndim == 2 else (second, first)
    return matrix.diagonal() @ vector


def diagonal_in(factor: Tensor, basis: Tensor | None) -> Tensor:
    """Return the diagonal of a factor in a basis, ⟨u_k, A u_k⟩, shape [p].

    Args:
        factor: A.
        basis: u in columns; None is the identity.
    """
    if basis is None:
        return factor if factor.ndim == 1 else factor.diagonal()
    product = factor[:, None] * basis if factor.ndim == 1 else factor @ basis
    return (basis * product).sum(0)


def seen_from(values: Tensor, basis: Tensor | None, own: Tensor | None) -> Tensor:
    """Return Σ_l ⟨u_j, u'_l⟩² x_l of values x [..., p] that belong to a basis u'.

    Args:
        values: x.
        basis: u' in columns; None is the identity.
        own: u in columns; None is the identity.
    """
    if basis is None and own is None:
        return values  # without the identity: an embedding's would be V x V
    overlap = basis if own is None else own.T if basis is None else own.T @ basis
    assert overlap is not None
    return values @ overlap.square().T


def spread_columns(tensor: Tensor, inputs: Tensor, size: int) -> Tensor:
    """Put columns [..., k] at places [k] of a larger tensor of zeros [..., size]."""
    larger = tensor.new_zeros(*tensor.shape[:-1], size)
    larger[..., inputs] = tensor
    return larger
