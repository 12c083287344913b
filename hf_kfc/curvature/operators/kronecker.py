"""One Kronecker product: as it is (KFC), or its eigenbasis with eigenvalues of its own (EKFAC)."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from .base import Operator, spread_columns
from .checks import bad_factor, negative, not_orthonormal, wrong_shape

__all__ = ["Kronecker", "KroneckerEigen", "damped_factor", "trace"]


class Kronecker(Operator):
    """F = G ⊗ A, so F·Δ = G Δ A (Martens & Grosse 2015; McInerney et al. 2021, arXiv:2111.06012).

    A factor given as a vector is a diagonal matrix: the input factor of an embedding, whose inputs
    are one-hot, is exactly diagonal.

    Args:
        A: Second moment of the layer's inputs, shape [p, p] or [p].
        G: Second moment of the gradients of its outputs, shape [q, q] or [q].
    """

    kind = "kronecker"
    tensor_names = ("A", "G")
    input_names = ("A",)

    def __init__(self, A: Tensor, G: Tensor) -> None:
        self.A = A
        self.G = G

    def apply(self, delta: Tensor) -> Tensor:
        """Return G Δ A."""
        left = self.G[:, None] * delta if self.G.ndim == 1 else self.G @ delta
        return left * self.A if self.A.ndim == 1 else left @ self.A

    def of_inputs(self, inputs: Tensor) -> Self:
        """See :meth:`Operator.of_inputs`."""
        return type(self)(self.A[inputs], self.G) if self.A.ndim == 1 else super().of_inputs(inputs)

    def spread(self, inputs: Tensor, size: int) -> Self:
        """See :meth:`Operator.spread`."""
        if self.A.ndim != 1:
            return super().spread(inputs, size)
        return type(self)(spread_columns(self.A, inputs, size), self.G)

    def damped(self, epsilon: float) -> Self:
        """Return (G + ε·tr(G)/q·I) ⊗ (A + ε·tr(A)/p·I)."""
        return type(self)(damped_factor(self.A, epsilon), damped_factor(self.G, epsilon))

    def mismatch(self, shape: tuple[int, int]) -> list[str]:
        """See :meth:`Operator.mismatch`."""
        q, p = shape
        return bad_factor("A", self.A, p) + bad_factor("G", self.G, q)


class KroneckerEigen(Operator):
    """F = (U_G ⊗ U_A) diag(s) (U_G ⊗ U_A)ᵀ: EKFAC (George et al. 2018, arXiv:1806.03884).

    ``s`` are the exact second moments of the per-example gradient in the eigenbasis of the
    Kronecker factors; no other diagonal in that basis is nearer to the exact block.

    Args:
        U_A: Eigenvectors of A in columns, shape [p, p]; an empty tensor of shape [0] stands for
            the identity (A is diagonal).
        U_G: Eigenvectors of G in columns, shape [q, q].
        second_moments: s, shape [q, p].
    """

    kind = "kronecker_eigen"
    tensor_names = ("U_A", "U_G", "second_moments")
    input_names = ("U_A",)

    def __init__(self, U_A: Tensor, U_G: Tensor, second_moments: Tensor) -> None:
        self.U_A = U_A
        self.U_G = U_G
        self.second_moments = second_moments

    def apply(self, delta: Tensor) -> Tensor:
        """Return U_G (s ∘ (U_Gᵀ Δ U_A)) U_Aᵀ."""
        rotated = self.U_G.T @ delta
        if self.U_A.ndim == 1:
            return self.U_G @ (self.second_moments * rotated)
        return self.U_G @ (self.second_moments * (rotated @ self.U_A)) @ self.U_A.T

    def of_inputs(self, inputs: Tensor) -> Self:
        """See :meth:`Operator.of_inputs`."""
        if self.U_A.ndim != 1:
            return super().of_inputs(inputs)
        return type(self)(self.U_A, self.U_G, self.second_moments[:, inputs])

    def spread(self, inputs: Tensor, size: int) -> Self:
        """See :meth:`Operator.spread`."""
        if self.U_A.ndim != 1:
            return super().spread(inputs, size)
        moments = spread_columns(self.second_moments, inputs, size)
        return type(self)(self.U_A, self.U_G, moments)

    def damped(self, epsilon: float) -> Self:
        """Return F + ε·mean(s)·I (the eigenbasis is orthonormal, so s is shifted)."""
        shifted = self.second_moments + epsilon * self.second_moments.mean()
        return type(self)(self.U_A, self.U_G, shifted)

    def mismatch(self, shape: tuple[int, int]) -> list[str]:
        """See :meth:`Operator.mismatch`."""
        q, p = shape
        wrong = wrong_shape("second_moments", self.second_moments, shape)
        wrong = wrong or negative("second_moments", self.second_moments)
        wrong += not_orthonormal("U_G", self.U_G, q)
        return (
            wrong if tuple(self.U_A.shape) == (0,) else wrong + not_orthonormal("U_A", self.U_A, p)
        )


def damped_factor(factor: Tensor, epsilon: float, *, diagonal: bool | None = None) -> Tensor:
    """Return a factor plus ε times its mean eigenvalue times the identity.

    Args:
        factor: Matrices [..., p, p], or diagonals [..., p].
        epsilon: Relative damping ε.
        diagonal: Whether it holds diagonals; by default a vector does.
    """
    if factor.ndim == 1 if diagonal is None else diagonal:
        return factor + epsilon * factor.mean(-1, keepdim=True)
    damped = factor.clone()
    entries = damped.diagonal(dim1=-2, dim2=-1)
    entries += epsilon * entries.mean(-1, keepdim=True)
    return damped


def trace(factor: Tensor) -> Tensor:
    """Return the trace of a factor.

    Args:
        factor: A matrix [p, p], or a diagonal [p].
    """
    return factor.sum() if factor.ndim == 1 else factor.trace()
