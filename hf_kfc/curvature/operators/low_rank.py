"""Kronecker products whose factors are of low rank, plus a diagonal."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor
from typing_extensions import override

from ...errors import CurvatureError
from ...precision import wide
from .base import Operator, StoredFactor
from .checks import bad_part, negative, wrong_shape
from .kronecker import Kronecker, Products

__all__ = ["LowRankFactors", "LowRankKronecker", "LowRankKroneckerSum", "dense_factor"]

_ALWAYS_FORMED, _ROWS_PER_RANK = 8192, 512


class LowRankFactors(Operator):
    """Stored factors U Uᵀ + diag(d), of one product or of several.

    Args:
        A_U: Eigenpairs of A, or those of several products stacked.
        A_d: The diagonal that goes with them.
        G_U: Likewise of G.
        G_d: Likewise.
    """

    tensor_names = ("A_U", "A_d", "G_U", "G_d")
    input_names = ("A_U", "A_d")
    column_names = ("A_d",)

    def __init__(self, A_U: Tensor, A_d: Tensor, G_U: Tensor, G_d: Tensor) -> None:
        self.A_U = A_U
        self.A_d = A_d
        self.G_U = G_U
        self.G_d = G_d

    @property
    @override
    def stands_by_input(self) -> bool:
        return not self.A_U.shape[-1]

    @override
    def trace(self, shape: tuple[int, int]) -> Tensor:
        return (_trace(self.A_U, self.A_d) * _trace(self.G_U, self.G_d)).sum()

    @override
    def scaled(self, weight: float) -> Self:
        return type(self)(self.A_U, self.A_d, weight**0.5 * self.G_U, weight * self.G_d)

    @override
    def damped(self, epsilon: float) -> Self:
        """Return Σ_s (G_s + ε·tr(G_s)/q·I) ⊗ (A_s + ε·tr(A_s)/p·I): only the diagonals grow.

        They are in float32 or wider: in half precision, small damping would be rounded away.
        """
        A_d = _damped_diagonal(self.A_U, self.A_d, epsilon)
        return type(self)(self.A_U, A_d, self.G_U, _damped_diagonal(self.G_U, self.G_d, epsilon))

    @override
    def _with_columns(self, change: Callable[[Tensor], Tensor]) -> Self:
        part = super()._with_columns(change)
        part.A_U = self.A_U.new_empty(*part.A_d.shape, 0)
        return part


class _LowRankProducts(LowRankFactors, Products):
    """What one product of low-rank factors and a sum of them have in common."""

    @property
    @abstractmethod
    def terms(self) -> list[LowRankKronecker]:
        """The products one by one."""

    @override
    def kronecker_terms(self) -> Sequence[Kronecker]:
        """Return the products with their factors as matrices; without columns, as vectors.

        They are in float32 or wider: rounded to half precision they could be indefinite.
        """
        return [
            Kronecker(
                dense_factor(wide(t.A_U), wide(t.A_d)), dense_factor(wide(t.G_U), wide(t.G_d))
            )
            for t in self.terms
        ]

    @override
    def stored_factors(self) -> Sequence[tuple[StoredFactor, StoredFactor]]:
        return [(_stored(t.G_U, t.G_d), _stored(t.A_U, t.A_d)) for t in self.terms]

    @override
    def spectrum(self, shape: tuple[int, int]) -> Tensor | None:
        if _is_out_of_proportion(self.A_U) or _is_out_of_proportion(self.G_U):
            return None
        return super().spectrum(shape)


class LowRankKronecker(_LowRankProducts):
    """F = G ⊗ A with A = U_A U_Aᵀ + diag(d_A) and G = U_G U_Gᵀ + diag(d_G).

    It is positive semi-definite in whatever precision its tensors are stored.

    Args:
        A_U: U_A, shape [p, k]; k = 0 if A is diagonal (embeddings).
        A_d: d_A ≥ 0, shape [p].
        G_U: U_G, shape [q, l].
        G_d: d_G ≥ 0, shape [q].
    """

    kind = "low_rank_kronecker"

    @property
    @override
    def terms(self) -> list[LowRankKronecker]:
        return [self]

    @override
    def apply(self, delta: Tensor) -> Tensor:
        """Return G Δ A, each factor multiplied as it is or as a matrix, whichever costs less."""
        left = _times(delta.T, self.G_U, self.G_d).T
        return _times(left, self.A_U, self.A_d)

    @override
    def inner(self, other: Operator, shape: tuple[int, int]) -> Tensor:
        if not isinstance(other, LowRankKronecker):
            return super().inner(other, shape)
        return _inner(self.A_U, self.A_d, other.A_U, other.A_d) * _inner(
            self.G_U, self.G_d, other.G_U, other.G_d
        )

    @override
    def problems(self, shape: tuple[int, int]) -> list[str]:
        q, p = shape
        return _bad_parts("A", self.A_U, self.A_d, p) + _bad_parts("G", self.G_U, self.G_d, q)


class LowRankKroneckerSum(_LowRankProducts):
    """F = Σ_s G_s ⊗ A_s, each as in :class:`LowRankKronecker`.

    Args:
        A_U: U_A of the terms, shape [r, p, k]; k = 0 if A is diagonal (embeddings).
        A_d: d_A ≥ 0, shape [r, p].
        G_U: U_G, shape [r, q, l].
        G_d: d_G ≥ 0, shape [r, q].
    """

    kind = "low_rank_kronecker_sum"

    @property
    @override
    def terms(self) -> list[LowRankKronecker]:
        tensors = (self.A_U, self.A_d, self.G_U, self.G_d)
        return [LowRankKronecker(*parts) for parts in zip(*tensors, strict=True)]

    @override
    def apply(self, delta: Tensor) -> Tensor:
        return torch.stack([term.apply(delta) for term in self.terms]).sum(0)

    @override
    def problems(self, shape: tuple[int, int]) -> list[str]:
        return bad_part(self.state(), LowRankKronecker, shape, "term")


def dense_factor(U: Tensor, d: Tensor) -> Tensor:
    """Return U Uᵀ + diag(d), shape [p, p]; or d itself if U has no columns.

    Args:
        U: Shape [p, k].
        d: Shape [p].

    Raises:
        CurvatureError: The matrix is out of all proportion to U: a file of some hundred kilobytes
            would ask for gigabytes.
    """
    if not U.shape[1]:
        return d
    if _is_out_of_proportion(U):
        raise CurvatureError(
            f"a factor of {U.shape[0]} rows and rank {U.shape[1]} is too large to form as a "
            "matrix; compress with a higher rank"
        )
    factor = U @ U.T
    entries = factor.diagonal()
    entries += d
    return factor


def _is_out_of_proportion(U: Tensor) -> bool:
    """Whether U Uᵀ is a large matrix of very few numbers."""
    rows, rank = U.shape[-2:]
    return rank > 0 and rows > max(_ALWAYS_FORMED, _ROWS_PER_RANK * (rank + 1))


def _inner(U: Tensor, d: Tensor, V: Tensor, e: Tensor) -> Tensor:
    """Return ⟨U Uᵀ + diag(d), V Vᵀ + diag(e)⟩ in the time of U Vᵀ."""
    low = (U.T @ V).square().sum() + U.square().sum(1) @ e + V.square().sum(1) @ d
    total: Tensor = low + d @ e
    return total


def _times(delta: Tensor, U: Tensor, d: Tensor) -> Tensor:
    """Return Δ (U Uᵀ + diag(d)) of Δ [m, p]."""
    (m, p), k = delta.shape, U.shape[1]
    if not k:
        return delta * d
    # Multiplications: p²k for the matrix and m·p² with it, or m·p·k twice.
    if p * (k + m) < 2 * m * k:
        return delta @ dense_factor(U, d)
    return delta @ U @ U.T + delta * d


def _damped_diagonal(U: Tensor, d: Tensor, epsilon: float) -> Tensor:
    U, d = wide(U), wide(d)
    return d + epsilon * _trace(U, d)[..., None] / d.shape[-1]


def _trace(U: Tensor, d: Tensor) -> Tensor:
    """Return tr(U Uᵀ + diag(d)) of each factor."""
    return U.square().sum((-2, -1)) + d.sum(-1)


def _stored(U: Tensor, d: Tensor) -> StoredFactor:
    return StoredFactor(d, U if U.shape[1] else None)


def _bad_parts(name: str, U: Tensor, d: Tensor, size: int) -> list[str]:
    wrong = wrong_shape(f"{name}_d", d, (size,)) or negative(f"{name}_d", d)
    if U.ndim == 2 and len(U) == size and U.shape[1] <= size:
        return wrong
    expected = f"[{size}, k] with k at most {size}"
    return [f"{name}_U has shape {list(U.shape)}, expected {expected}", *wrong]
