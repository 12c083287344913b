"""Curvatures whose eigenvectors are known: single parameters (L2, EWC), and EKFAC."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor
from typing_extensions import override

from ...precision import wide_dtype
from .base import Eigenbasis, Operator
from .checks import negative, not_orthonormal, wrong_shape

__all__ = ["Diagonal", "Identity", "KroneckerEigen"]


class _Spectral(Operator):
    """F = U diag(s) Uᵀ: the last of its tensors are the eigenvalues s."""

    @property
    def _values(self) -> Tensor:
        values: Tensor = getattr(self, self.tensor_names[-1])
        return values

    def _with(self, values: Tensor) -> Self:
        return self.from_state(self.state() | {self.tensor_names[-1]: values})

    @override
    def damped(self, epsilon: float) -> Self:
        """Return F + ε·mean(s)·I."""
        return self._with(self._values + epsilon * self._values.mean())

    @override
    def shift(self, epsilon: float) -> float:
        """Return ε·mean(s); the mean of bfloat16 numbers is not rounded to one."""
        return epsilon * float(self._values.mean(dtype=wide_dtype(self._values.dtype)))

    @override
    def scaled(self, weight: float) -> Self:
        return self._with(weight * self._values)


class _Elementwise(_Spectral):
    """F·Δ = s ∘ Δ."""

    @override
    def apply(self, delta: Tensor) -> Tensor:
        return self._values * delta

    @override
    def eigenbasis(self, shape: tuple[int, int]) -> Eigenbasis:
        return Eigenbasis(self._values.expand(shape))

    def __add__(self, other: Operator) -> Operator:
        if not isinstance(other, type(self)):
            return super().__add__(other)
        return self._with(self._values + other._values)


class Identity(_Elementwise):
    """F = s·I: the L2 penalty towards the anchor.

    Args:
        scale: Scalar tensor s ≥ 0, shape [].
    """

    kind = "identity"
    tensor_names = ("scale",)

    def __init__(self, scale: Tensor | None = None) -> None:
        self.scale = torch.ones(()) if scale is None else scale

    @override
    def problems(self, shape: tuple[int, int]) -> list[str]:
        return wrong_shape("scale", self.scale, ()) or negative("scale", self.scale)


class Diagonal(_Elementwise):
    """F = diag(d): Elastic Weight Consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796).

    Args:
        diagonal: d = mean over examples of the squared per-example gradient, shape [q, p].
    """

    kind = "diagonal"
    tensor_names = column_names = ("diagonal",)

    def __init__(self, diagonal: Tensor) -> None:
        self.diagonal = diagonal

    @property
    @override
    def stands_by_input(self) -> bool:
        return True

    @override
    def problems(self, shape: tuple[int, int]) -> list[str]:
        wrong = wrong_shape("diagonal", self.diagonal, shape)
        return wrong or negative("diagonal", self.diagonal)

    @override
    def input_moment(self) -> Tensor:
        return self.diagonal.sum(0)

    @override
    def cost(self, shape: tuple[int, int]) -> int:
        return shape[0] * shape[1]


class KroneckerEigen(_Spectral):
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
