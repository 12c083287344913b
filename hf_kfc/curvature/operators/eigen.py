"""The eigenbasis of a Kronecker product with eigenvalues of its own (EKFAC)."""

from __future__ import annotations

from typing import Self

from torch import Tensor
from typing_extensions import override

from .base import Eigenbasis, Operator
from .checks import negative, not_orthonormal, wrong_shape
from .elementwise import mean_of

__all__ = ["KroneckerEigen"]


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
    column_names = ("second_moments",)

    def __init__(self, U_A: Tensor, U_G: Tensor, second_moments: Tensor) -> None:
        self.U_A = U_A
        self.U_G = U_G
        self.second_moments = second_moments

    @property
    @override
    def stands_by_input(self) -> bool:
        return self.U_A.ndim == 1

    @override
    def apply(self, delta: Tensor) -> Tensor:
        """Return U_G (s ∘ (U_Gᵀ Δ U_A)) U_Aᵀ."""
        rotated = self.U_G.T @ delta
        if self.U_A.ndim == 1:
            return self.U_G @ (self.second_moments * rotated)
        return self.U_G @ (self.second_moments * (rotated @ self.U_A)) @ self.U_A.T

    @override
    def damped(self, epsilon: float) -> Self:
        """Return F + ε·mean(s)·I (the eigenbasis is orthonormal, so s is shifted)."""
        shifted = self.second_moments + epsilon * self.second_moments.mean()
        return type(self)(self.U_A, self.U_G, shifted)

    @override
    def shift(self, epsilon: float) -> float:
        return epsilon * mean_of(self.second_moments)

    @override
    def scaled(self, weight: float) -> Self:
        return type(self)(self.U_A, self.U_G, weight * self.second_moments)

    @override
    def eigenbasis(self, shape: tuple[int, int]) -> Eigenbasis:
        U_A = None if self.U_A.ndim == 1 else self.U_A
        return Eigenbasis(self.second_moments, U_A, self.U_G)

    @override
    def input_moment(self) -> Tensor:
        """Return U_A diag(Σ_k s_kl) U_Aᵀ."""
        moments, basis = self.second_moments.sum(0), self.U_A
        return moments if basis.ndim == 1 else (basis * moments) @ basis.T

    @override
    def problems(self, shape: tuple[int, int]) -> list[str]:
        q, p = shape
        wrong = wrong_shape("second_moments", self.second_moments, shape)
        wrong = wrong or negative("second_moments", self.second_moments)
        wrong += not_orthonormal("U_G", self.U_G, q)
        return (
            wrong if tuple(self.U_A.shape) == (0,) else wrong + not_orthonormal("U_A", self.U_A, p)
        )
