"""Kronecker products: one, the curvature of a task (KFC), or a sum of them, that of several."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor
from typing_extensions import override

from ...errors import CurvatureError
from ...precision import wide
from .base import KroneckerTerm, Operator, StoredFactor
from .checks import bad_factor, bad_part
from .factors import damped_factor, trace
from .solving import conjugate_gradients, whitened, whitener

__all__ = ["Factors", "Kronecker", "KroneckerSum", "Products", "refuse_unlike"]


class Products(Operator):
    """A curvature that is Σ_s G_s ⊗ A_s, however it is stored."""

    @abstractmethod
    @override
    def kronecker_terms(self) -> Sequence[KroneckerTerm]: ...

    @override
    def input_moment(self) -> Tensor:
        """Return A of a single product, and Σ_s tr(G_s) A_s of several."""
        terms = self.kronecker_terms()
        if len(terms) == 1:
            return terms[0].A
        return torch.stack([trace(wide(term.G)) * wide(term.A) for term in terms]).sum(0)

    @override
    def _solved(self, b: Tensor) -> tuple[Tensor, int]:
        """Solve Σ_s G_s x A_s = b in coordinates in which one product is the identity.

        It is the product that has the partial traces of the sum, Ḡ ⊗ Ā with Ā = Σ_s tr(G_s) A_s and
        Ḡ = Σ_s tr(A_s) G_s: so a single product takes one step. In directions in which Ḡ or Ā has
        no more than rounding, x is 0.
        """
        terms = self.kronecker_terms()
        W_A = whitener([t.A for t in terms], [trace(t.G) for t in terms])
        W_G = whitener([t.G for t in terms], [trace(t.A) for t in terms])
        white = [Kronecker(whitened(t.A, W_A), whitened(t.G, W_G)) for t in terms]
        V_A, V_G = (W if W.ndim == 1 else W.T for W in (W_A, W_G))
        y, steps = conjugate_gradients(KroneckerSum.of(white).apply, Kronecker(W_A, V_G).apply(b))
        return Kronecker(V_A, W_G).apply(y), steps

    def __add__(self, other: Operator) -> Operator:
        """Return the sum of all products; none is merged."""
        if not (others := other.kronecker_terms()):
            return super().__add__(other)
        return KroneckerSum.of([*self.kronecker_terms(), *others])


class Factors(Operator):
    """Stored factors A and G, of one product or of several.

    Args:
        A: Input factor, or those of several products stacked.
        G: Output factor, or those of several products stacked.

    Attributes:
        leading: How many dimensions stack them.
    """

    leading: ClassVar[int]
    tensor_names = factor_names = ("A", "G")
    input_names = column_names = ("A",)

    def __init__(self, A: Tensor, G: Tensor) -> None:
        self.A = A
        self.G = G

    @property
    @override
    def stands_by_input(self) -> bool:
        return self.is_diagonal(self.A)

    @override
    def stored_factors(self) -> Sequence[tuple[StoredFactor, StoredFactor]]:
        return [(StoredFactor(t.G), StoredFactor(t.A)) for t in self.kronecker_terms()]

    @override
    def damped(self, epsilon: float) -> Self:
        """Return Σ_s (G_s + ε·tr(G_s)/q·I) ⊗ (A_s + ε·tr(A_s)/p·I).

        Every summand of a product so multiplied out, as ε·tr(A_s)/p·G_s ⊗ I, is a partial trace of
        G_s ⊗ A_s: linear in F. So damping commutes with merging: the damped sum of curvatures is
        the sum of the damped ones, and does not depend on how F is written as a sum.
        """
        A, G = (damped_factor(x, epsilon, diagonal=self.is_diagonal(x)) for x in (self.A, self.G))
        return type(self)(A, G)

    @override
    def scaled(self, weight: float) -> Self:
        """Return w·F with the weight in G: layers that share A still do."""
        return type(self)(self.A, weight * self.G)

    def is_diagonal(self, factor: Tensor) -> bool:
        """Whether A or G is stored as a diagonal."""
        return factor.ndim == self.leading + 1


class Kronecker(Factors, Products):
    """F = G ⊗ A, so F·Δ = G Δ A (Martens & Grosse 2015; McInerney et al. 2021, arXiv:2111.06012).

    A factor given as a vector is a diagonal matrix: the input factor of an embedding, whose inputs
    are one-hot, is exactly diagonal.

    Args:
        A: Second moment of the layer's inputs, shape [p, p] or [p].
        G: Second moment of the gradients of its outputs, shape [q, q] or [q].
    """

    kind = "kronecker"
    leading = 0
    _summed: Sequence[tuple[Tensor, int]] = ()

    @classmethod
    def of_sums(cls, A: Tensor, G: Tensor) -> Self:
        """Make one of second moments, which are positive semi-definite but for rounding.

        :meth:`problems` believes that while nothing writes to them: of wide layers it takes long.
        """
        product = cls(A, G)
        product._summed = [(factor, factor._version) for factor in (A, G)]
        return product

    def _is_summed(self, shape: tuple[int, int]) -> bool:
        q, p = shape
        return bool(self._summed) and all(
            own is factor and own._version == version and set(own.shape) == {size}
            for own, (factor, version), size in zip(
                (self.A, self.G), self._summed, (p, q), strict=True
            )
        )

    @override
    def kronecker_terms(self) -> Sequence[Kronecker]:
        return [self]

    @override
    def apply(self, delta: Tensor) -> Tensor:
        """Return G Δ A."""
        left = self.G[:, None] * delta if self.G.ndim == 1 else self.G @ delta
        return left * self.A if self.A.ndim == 1 else left @ self.A

    @override
    def problems(self, shape: tuple[int, int]) -> list[str]:
        if self._is_summed(shape):
            return []
        q, p = shape
        return bad_factor("A", self.A, p) + bad_factor("G", self.G, q)


class KroneckerSum(Factors, Products):
    """F = Σ_s G_s ⊗ A_s, so F·Δ = Σ_s G_s Δ A_s.

    Args:
        A: Input factors of the terms, shape [r, p, p], or [r, p] if they are diagonal
            (embeddings).
        G: Output factors of the terms, shape [r, q, q], or [r, q] if they are diagonal.
    """

    kind = "kronecker_sum"
    leading = 1

    @classmethod
    def of(cls, terms: Sequence[KroneckerTerm]) -> Self:
        """Stack products of one block.

        Args:
            terms: The products.

        Raises:
            CurvatureError: Their factors have different shapes.
        """
        A, G = [term.A for term in terms], [term.G for term in terms]
        refuse_unlike("A", A)
        refuse_unlike("G", G)
        return cls(torch.stack(A), torch.stack(G))

    @override
    def kronecker_terms(self) -> Sequence[Kronecker]:
        return [Kronecker(A, G) for A, G in zip(self.A, self.G, strict=True)]

    @override
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

    @override
    def problems(self, shape: tuple[int, int]) -> list[str]:
        """Say what is wrong; every factor must be positive semi-definite by itself."""
        return bad_part(self.state(), Kronecker, shape, "term")


def refuse_unlike(name: str, factors: Sequence[Tensor]) -> None:
    """Refuse factors of different shapes: they have no sum."""
    if len(shapes := {tuple(factor.shape) for factor in factors}) > 1:
        found = " and ".join(str(list(shape)) for shape in sorted(shapes))
        raise CurvatureError(
            f"factors {name} of shapes {found} have no sum; merge curvatures of one layer"
        )
