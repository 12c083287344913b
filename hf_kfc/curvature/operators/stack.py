"""A curvature for each part of a layer whose parts have inputs of their own: groups, experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor
from typing_extensions import override

from .base import Eigenbasis, Operator
from .checks import bad_part
from .kronecker import Factors, KroneckerSum, Products
from .low_rank import LowRankFactors, LowRankKroneckerSum

__all__ = ["KroneckerStack", "LowRankKroneckerStack", "Stack"]


class Stack(Operator):
    """F = diag(F_1, ..., F_n): the e-th of n equal parts of the rows of Δ has the curvature F_e.

    Its tensors are those of its parts with one more dimension, the first.

    Attributes:
        part: What each F_e is.
    """

    part: ClassVar[type[Products]]

    @classmethod
    def of(cls, parts: Sequence[Operator]) -> Self:
        """Stack curvatures of equal shapes, each of the kind :attr:`part`."""
        states = [part.state() for part in parts]
        return cls.from_state({n: torch.stack([s[n] for s in states]) for n in cls.tensor_names})

    @property
    def parts(self) -> list[Products]:
        """F_1, ..., F_n."""
        return [self.part(*tensors) for tensors in zip(*self.state().values(), strict=True)]

    @override
    def apply(self, delta: Tensor) -> Tensor:
        """Return F_e Δ_e of every part, all parts at once."""
        state = self.state()
        own = delta.reshape(len(next(iter(state.values()))), -1, delta.shape[1])
        product: Tensor = torch.vmap(lambda s, d: self.part.from_state(s).apply(d))(state, own)
        return product.reshape(delta.shape)

    def __add__(self, other: Operator) -> Operator:
        """Return the sum, part by part; no product is merged."""
        if not isinstance(other, Stack):
            return super().__add__(other)
        pairs = zip(self.parts, other.parts, strict=True)
        return KroneckerStack.of([one + two for one, two in pairs])

    @override
    def inner(self, other: Operator, shape: tuple[int, int]) -> Tensor:
        if not isinstance(other, Stack):
            return super().inner(other, shape)
        own = self._shape(shape)
        pairs = zip(self.parts, other.parts, strict=True)
        return torch.stack([one.inner(two, own) for one, two in pairs]).sum()

    @override
    def diagonal_in(self, basis: Eigenbasis) -> Tensor:
        if basis.U_G is not None:
            return super().diagonal_in(basis)
        parts = self.parts
        values = basis.values.reshape(len(parts), -1, basis.values.shape[1])
        of_parts = (Eigenbasis(own, basis.U_A) for own in values)
        return torch.cat([p.diagonal_in(b) for p, b in zip(parts, of_parts, strict=True)])

    @override
    def trace(self, shape: tuple[int, int]) -> Tensor:
        own = self._shape(shape)
        return torch.stack([part.trace(own) for part in self.parts]).sum()

    @override
    def spectrum(self, shape: tuple[int, int]) -> Tensor | None:
        own = self._shape(shape)
        found = [values for p in self.parts if (values := p.spectrum(own)) is not None]
        return torch.cat(found) if len(found) == len(self.parts) else None

    @override
    def input_moment(self) -> Tensor | None:
        """Return Σ_e Σ_s tr(G_es) A_es: what all parts know of their inputs."""
        terms = [term for part in self.parts for term in part.kronecker_terms()]
        return KroneckerSum.of(terms).input_moment()

    @override
    def moments_by_part(self, parts: int, shape: tuple[int, int]) -> Tensor:
        return torch.stack([part.input_moment() for part in self.parts])

    @override
    def cost(self, shape: tuple[int, int]) -> int:
        return sum(part.cost(self._shape(shape)) for part in self.parts)

    @override
    def problems(self, shape: tuple[int, int]) -> list[str]:
        """Say what is wrong, of the first part in which anything is."""
        (first, *_), (q, p) = self.state().values(), shape
        n = len(first) if first.ndim else 0
        if n and q % n:
            return [f"{', '.join(self.state())} have {n} parts, into which {q} rows do not fall"]
        return bad_part(self.state(), self.part, (q // max(n, 1), p), "part")

    @override
    def _solved(self, b: Tensor) -> tuple[Tensor, int]:
        parts = self.parts
        own = b.reshape(len(parts), -1, b.shape[1])
        solved = [part._solved(rows) for part, rows in zip(parts, own, strict=True)]
        return torch.cat([x for x, _ in solved]), max(steps for _, steps in solved)

    def _shape(self, shape: tuple[int, int]) -> tuple[int, int]:
        return shape[0] // len(next(iter(self.state().values()))), shape[1]


class KroneckerStack(Stack, Factors):
    """F_e = Σ_s G_es ⊗ A_es of each part e: one product of a task, several of merged ones.

    Each part is damped by its own size: one that no example went through stays 0.

    Args:
        A: Input factors, shape [n, r, p, p].
        G: Output factors, shape [n, r, q/n, q/n].
    """

    kind = "kronecker_stack"
    part = KroneckerSum
    leading = 2


class LowRankKroneckerStack(Stack, LowRankFactors):
    """F_e as in :class:`KroneckerStack`, each factor U Uᵀ + diag(d).

    Args:
        A_U: Shape [n, r, p, k].
        A_d: Shape [n, r, p].
        G_U: Shape [n, r, q/n, l].
        G_d: Shape [n, r, q/n].
    """

    kind = "low_rank_kronecker_stack"
    part = LowRankKroneckerSum
