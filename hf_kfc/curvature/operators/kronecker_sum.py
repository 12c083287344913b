"""A sum of Kronecker products: the curvature of several tasks in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from torch import Tensor

from .base import Operator, spread_columns
from .checks import bad_factor
from .kronecker import Kronecker, damped_factor

__all__ = ["KroneckerSum"]


class KroneckerSum(Operator):
    """F = Σ_s G_s ⊗ A_s, so F·Δ = Σ_s G_s Δ A_s.

    Args:
        A: Input factors of the terms, shape [r, p, p], or [r, p] if they are diagonal
            (embeddings).
        G: Output factors of the terms, shape [r, q, q], or [r, q] if they are diagonal.
    """

    kind = "kronecker_sum"
    tensor_names = ("A", "G")
    input_names = ("A",)

    def __init__(self, A: Tensor, G: Tensor) -> None:
        self.A = A
        self.G = G

    def apply(self, delta: Tensor) -> Tensor:
        """Return Σ_s G_s Δ A_s, in two products whatever the number of terms."""
        q, p = delta.shape
        if self.G.ndim == 2:
            left = self.G[:, :, None] * delta
        else:
            left = (self.G.flatten(0, 1) @ delta).reshape(-1, q, p)
        if self.A.ndim == 2:
            return (left * self.A[:, None, :]).sum(0)
        return left.transpose(0, 1).reshape(q, -1) @ self.A.flatten(0, 1)

    def of_inputs(self, inputs: Tensor) -> Self:
        """See :meth:`Operator.of_inputs`."""
        if self.A.ndim != 2:
            return super().of_inputs(inputs)
        return type(self)(self.A[:, inputs], self.G)

    def spread(self, inputs: Tensor, size: int) -> Self:
        """See :meth:`Operator.spread`."""
        if self.A.ndim != 2:
            return super().spread(inputs, size)
        return type(self)(spread_columns(self.A, inputs, size), self.G)

    def terms(self) -> Sequence[Kronecker]:
        """See :meth:`Operator.terms`."""
        return [Kronecker(A, G) for A, G in zip(self.A, self.G, strict=True)]

    def damped(self, epsilon: float) -> Self:
        """Return Σ_s (G_s + ε·tr(G_s)/q·I) ⊗ (A_s + ε·tr(A_s)/p·I).

        Every summand of a product so multiplied out, as ε·tr(A_s)/p·G_s ⊗ I, is a partial trace of
        G_s ⊗ A_s: linear in F. So damping commutes with merging: the damped sum of curvatures is
        the sum of the damped ones, and does not depend on how F is written as a sum.
        """
        return type(self)(
            damped_factor(self.A, epsilon, diagonal=self.A.ndim == 2),
            damped_factor(self.G, epsilon, diagonal=self.G.ndim == 2),
        )

    def mismatch(self, shape: tuple[int, int]) -> list[str]:
        """See :meth:`Operator.mismatch`; every factor must be positive semi-definite by itself."""
        q, p = shape
        if wrong := _bad_stack("A", self.A, p) + _bad_stack("G", self.G, q):
            return wrong
        if len(self.A) != len(self.G):
            return [f"G has shape {list(self.G.shape)}, expected {len(self.A)} terms as A has"]
        sizes = {"A": p, "G": q}
        return [
            f"{phrase} in term {number}"
            for name, size in sizes.items()
            for number, factor in enumerate(getattr(self, name))
            for phrase in bad_factor(name, factor, size)
        ]


def _bad_stack(name: str, stack: Tensor, size: int) -> list[str]:
    terms, *factor = stack.shape or (0,)
    if terms and factor in ([size], [size, size]):
        return []
    found = list(stack.shape)
    return [f"{name} has shape {found}, expected [terms, {size}, {size}] or [terms, {size}]"]
