"""Inner products ⟨F, F'⟩ = tr(F F') of two curvatures, without ever forming their matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import CurvatureError
from .operators import Diagonal, Identity, Kronecker, KroneckerEigen, Operator

__all__ = ["inner", "relative_difference"]


def relative_difference(first: Operator, second: Operator, shape: tuple[int, int]) -> float | None:
    """Return ‖F − F'‖ / ‖F‖ in the Frobenius norm; None of F = 0.

    Args:
        first: F.
        second: F', of any kind.
        shape: (q, p) of the block that both belong to.
    """
    first, second = first.to(dtype=torch.float64), second.to(dtype=torch.float64)
    own = inner(first, first, shape)
    squared = own + inner(second, second, shape) - 2 * inner(first, second, shape)
    return float(squared.clamp(min=0) / own) ** 0.5 if own > 0 else None


def inner(first: Operator, second: Operator, shape: tuple[int, int]) -> Tensor:
    """Return ⟨F, F'⟩, a scalar.

    With F' = Σ s'_kl v_kl v_klᵀ it is Σ s'_kl ⟨v_kl, F v_kl⟩: all that is needed of F is its
    diagonal in the basis of F'. Two Kronecker products have ⟨A, A'⟩ ⟨G, G'⟩, and sums of them the
    sum over all pairs.

    Args:
        first: F.
        second: F', of any kind.
        shape: (q, p) of the block that both belong to.

    Raises:
        CurvatureError: An operator is of a kind that is not known here.
    """
    pairs = [(one, other) for one in first.terms() for other in second.terms()]
    return torch.stack([_inner(one, other, shape) for one, other in pairs]).sum()


def _trace(first: Tensor, second: Tensor) -> Tensor:
    """Return ⟨A, A'⟩ of two symmetric factors; a vector is a diagonal."""
    if first.ndim == second.ndim:
        return (first * second).sum()
    matrix, vector = (first, second) if first.ndim == 2 else (second, first)
    return matrix.diagonal() @ vector


def _inner(first: Operator, second: Operator, shape: tuple[int, int]) -> Tensor:
    if isinstance(second, Kronecker):
        if isinstance(first, Kronecker):
            return _trace(first.A, second.A) * _trace(first.G, second.G)
        first, second = second, first
    values, U_A, U_G = _spectral(second, shape)
    if isinstance(first, Kronecker):
        return _diagonal(first.G, U_G) @ values @ _diagonal(first.A, U_A)
    own, own_A, own_G = _spectral(first, shape)
    return (own * _seen_from(_seen_from(values, U_A, own_A).T, U_G, own_G).T).sum()


def _spectral(
    operator: Operator, shape: tuple[int, int]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return eigenvalues [q, p] and bases U_A and U_G; None is the identity."""
    match operator:
        case Identity():
            return operator.scale.expand(shape), None, None
        case Diagonal():
            return operator.diagonal, None, None
        case KroneckerEigen():
            U_A = None if operator.U_A.ndim == 1 else operator.U_A
            return operator.second_moments, U_A, operator.U_G
        case _:
            raise CurvatureError(
                f"a {operator.kind} curvature has no inner product; add a rule to "
                "hf_kfc.curvature.products"
            )


def _diagonal(factor: Tensor, basis: Tensor | None) -> Tensor:
    """Return the diagonal of a factor in a basis, ⟨u_k, A u_k⟩."""
    if basis is None:
        return factor if factor.ndim == 1 else factor.diagonal()
    product = factor[:, None] * basis if factor.ndim == 1 else factor @ basis
    return (basis * product).sum(0)


def _seen_from(values: Tensor, basis: Tensor | None, own: Tensor | None) -> Tensor:
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
