"""What every curvature operator is and does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from ...errors import CurvatureError
from .factors import diagonal_in, eigenvalues, inner_of_factors, seen_from, spread_columns, trace
from .solving import Solution, conjugate_gradients

__all__ = ["Eigenbasis", "KroneckerTerm", "Operator", "StoredFactor", "relative_difference"]

_DENSE = 2048  # parameters of a block whose matrix may be formed for want of a better way


class KroneckerTerm(Protocol):
    """One product G ⊗ A; a factor given as a vector is a diagonal matrix."""

    A: Tensor
    G: Tensor


class StoredFactor(NamedTuple):
    """A factor U Uᵀ + M as it is stored.

    Args:
        values: M, shape [n, n], or [n] if it is diagonal.
        columns: U, shape [n, k]; None without.
    """

    values: Tensor
    columns: Tensor | None = None

    @property
    def numbers(self) -> int:
        """How many numbers it is."""
        return self.values.numel() + (0 if self.columns is None else self.columns.numel())


class Eigenbasis(NamedTuple):
    """F = (U_G ⊗ U_A) diag(values) (U_G ⊗ U_A)ᵀ.

    Args:
        values: Eigenvalues, shape [q, p].
        U_A: Eigenvectors of the inputs' side in columns, shape [p, p]; None is the identity.
        U_G: Likewise of the outputs' side, shape [q, q].
    """

    values: Tensor
    U_A: Tensor | None = None
    U_G: Tensor | None = None


class Operator(ABC):
    """A symmetric positive semi-definite linear map of matrices Δ of shape [q, p].

    A new kind of curvature is one new class with a :attr:`kind`, its :attr:`tensor_names`, and
    :meth:`apply`, :meth:`damped` and :meth:`problems`; :meth:`scaled` and ``+`` make it one that
    can be merged with its like. Everything else follows: from :meth:`kronecker_terms` or
    :meth:`eigenbasis` where there is one, otherwise from the matrix of a block of at most 2,048
    parameters, or by conjugate gradients. Registered with
    :func:`~hf_kfc.curvature.register_operator` it is stored in priors and read again.

    Attributes:
        kind: The name under which it is stored.
        tensor_names: Its tensors: constructor arguments, attributes and keys of :meth:`state`.
        input_names: Those of them that belong to the layer's inputs: layers that read the same
            inputs hold the same tensors there.
        factor_names: Those that hold positive semi-definite matrices, stacks of them or their
            diagonals, and are to stay so when they are rounded.
        column_names: Those whose last dimension runs over the inputs where each of these stands
            alone (:attr:`stands_by_input`).
    """

    kind: ClassVar[str]
    tensor_names: ClassVar[tuple[str, ...]]
    input_names: ClassVar[tuple[str, ...]] = ()
    factor_names: ClassVar[tuple[str, ...]] = ()
    column_names: ClassVar[tuple[str, ...]] = ()

    # --- What a kind must say ---------------------------------------------------------------------

    @abstractmethod
    def apply(self, delta: Tensor) -> Tensor:
        """Multiply by the curvature.

        Args:
            delta: Displacement from the anchor, shape [q, p].

        Returns:
            F·Δ, shape [q, p].
        """

    @abstractmethod
    def damped(self, epsilon: float) -> Self:
        """Return this curvature plus Tikhonov damping relative to its own size.

        Damping is linear: the damped sum of operators of one family is the sum of the damped ones.

        Args:
            epsilon: Relative damping ε ≥ 0; 0 returns an equal operator.
        """

    @abstractmethod
    def problems(self, shape: tuple[int, int]) -> list[str]:
        """Say what is wrong with the tensors for a block of this shape.

        Args:
            shape: (q, p).

        Returns:
            One phrase for each wrong shape, asymmetry or indefiniteness, which begins with the
            name of the tensor; empty if there is none.
        """

    # --- What a kind may say ----------------------------------------------------------------------

    def kronecker_terms(self) -> Sequence[KroneckerTerm]:
        """Return Kronecker products that add up to this curvature; none if it is no such sum."""
        return []

    def stored_factors(self) -> Sequence[tuple[StoredFactor, StoredFactor]]:
        """Return G and A of each product as they are stored; none if no products are."""
        return []

    def eigenbasis(self, shape: tuple[int, int]) -> Eigenbasis | None:
        """Return the Kronecker basis in which F is diagonal; None if none is known at hand.

        Args:
            shape: (q, p).
        """
        return None

    def scaled(self, weight: float) -> Self:
        """Return w·F.

        Args:
            weight: w ≥ 0.

        Raises:
            CurvatureError: The kind does not say how.
        """
        raise CurvatureError(f"a {self.kind} curvature has no multiples; define `scaled` for it")

    def __add__(self, other: Operator) -> Operator:
        kinds = " and ".join(sorted({self.kind, other.kind}))
        raise CurvatureError(
            f"curvatures of kind {kinds} have no sum; merge priors that are all kronecker, all "
            "diagonal or all identity"
        )

    def shift(self, epsilon: float) -> float | None:
        """Return the s of a damped F that is F + s·I; None if damping is something else.

        Args:
            epsilon: Relative damping ε.
        """
        return None

    @property
    def stands_by_input(self) -> bool:
        """Whether each input stands alone: where a column of Δ is 0, that of F·Δ is 0 too."""
        return False

    def input_moment(self) -> Tensor | None:
        """Return what F knows of the inputs: A up to a factor, [p, p] or [p]; None if nothing."""
        return None

    # --- What follows -----------------------------------------------------------------------------

    def moments_by_part(self, parts: int, shape: tuple[int, int]) -> Tensor:
        """Return what F knows of the inputs of each of n equal parts of the rows.

        Args:
            parts: n.
            shape: (q, p).

        Returns:
            A of each up to a factor, [n, p, p], or its diagonal [n, p].
        """
        diagonal = self.diagonal_in(Eigenbasis(torch.ones(shape)))
        return diagonal.reshape(parts, -1, shape[1]).sum(1)

    def inner(self, other: Operator, shape: tuple[int, int]) -> Tensor:
        """Return ⟨F, F'⟩ = tr(F F'), a scalar.

        Two Kronecker products have ⟨A, A'⟩ ⟨G, G'⟩, and sums of them the sum over all pairs. With
        F' = Σ s'_kl v_kl v_klᵀ it is Σ s'_kl ⟨v_kl, F v_kl⟩: all that is needed of F is its
        diagonal in the basis of F'.

        Args:
            other: F', of any kind.
            shape: (q, p) of the block that both belong to.

        Raises:
            CurvatureError: Only the matrices tell, and the block is too large for them.
        """
        if (mine := self.kronecker_terms()) and (theirs := other.kronecker_terms()):
            pairs = [
                inner_of_factors(one.A, two.A) * inner_of_factors(one.G, two.G)
                for one in mine
                for two in theirs
            ]
            return torch.stack(pairs).sum()
        for one, two in ((self, other), (other, self)):
            if (basis := two.eigenbasis(shape)) is not None:
                return (basis.values * one.diagonal_in(basis)).sum()
        return (self._matrix(shape) * other._matrix(shape)).sum()

    def diagonal_in(self, basis: Eigenbasis) -> Tensor:
        """Return ⟨v_kl, F v_kl⟩ of the basis vectors v_kl, shape [q, p].

        Args:
            basis: Of a block of the same shape.

        Raises:
            CurvatureError: Only the matrix tells, and the block is too large for it.
        """
        q, p = shape = (basis.values.shape[0], basis.values.shape[1])
        if terms := self.kronecker_terms():
            parts = [
                torch.outer(diagonal_in(term.G, basis.U_G), diagonal_in(term.A, basis.U_A))
                for term in terms
            ]
            return torch.stack(parts).sum(0)
        if (own := self.eigenbasis(shape)) is not None:
            by_inputs = seen_from(own.values, own.U_A, basis.U_A)
            return seen_from(by_inputs.T, own.U_G, basis.U_G).T
        U_G, U_A = (
            torch.eye(size).to(basis.values) if U is None else U.contiguous()
            for size, U in ((q, basis.U_G), (p, basis.U_A))
        )
        U = torch.kron(U_G, U_A)
        return (U * (self._matrix(shape) @ U)).sum(0).reshape(q, p)

    def trace(self, shape: tuple[int, int]) -> Tensor:
        """Return tr(F), a scalar.

        Args:
            shape: (q, p).

        Raises:
            CurvatureError: Only the matrix tells, and the block is too large for it.
        """
        if terms := self.kronecker_terms():
            return torch.stack([trace(term.A) * trace(term.G) for term in terms]).sum()
        if (basis := self.eigenbasis(shape)) is not None:
            return basis.values.sum()
        return self._matrix(shape).trace()

    def spectrum(self, shape: tuple[int, int]) -> Tensor | None:
        """Return the eigenvalues of F in no order, shape [q·p]; None if only its matrix has them.

        Args:
            shape: (q, p).
        """
        if (basis := self.eigenbasis(shape)) is not None:
            return basis.values.flatten()
        if len(terms := self.kronecker_terms()) == 1:
            A, G = (eigenvalues(factor) for factor in (terms[0].A, terms[0].G))
            return torch.outer(G, A).flatten()
        if shape[0] * shape[1] > _DENSE:
            return None
        values: Tensor = torch.linalg.eigvalsh(self._matrix(shape).double())
        return values

    def solve(self, b: Tensor) -> Solution:
        """Solve F·x = b in float64, without forming F.

        Args:
            b: Right-hand side, shape [q, p].

        Returns:
            The best x that was found; look at its residual. In directions without curvature x is 0.
        """
        operator, b = self.to(dtype=torch.float64), b.double()
        x, steps = operator._solved(b)
        x = x.nan_to_num(0.0, 0.0, 0.0)
        size = float(b.norm())
        return Solution(x, float((b - operator.apply(x)).norm()) / size if size else 0.0, steps)

    def _solved(self, b: Tensor) -> tuple[Tensor, int]:
        basis = self.eigenbasis((b.shape[0], b.shape[1]))
        if basis is None:
            return conjugate_gradients(self.apply, b)
        values, U_A, U_G = basis
        rotated = b if U_G is None else U_G.T @ b
        rotated = rotated if U_A is None else rotated @ U_A
        x = torch.where(values > 0, rotated / values, 0.0)
        x = x if U_G is None else U_G @ x
        return x if U_A is None else x @ U_A.T, 0

    def cost(self, shape: tuple[int, int]) -> int:
        """Return about how many multiplications F·Δ takes: q²p + qp² of a Kronecker product.

        Where each input stands alone, only those with any curvature count: about those that the
        old task has seen will have moved.

        Args:
            shape: (q, p).
        """
        q, p = shape
        if self.stands_by_input and (terms := self.kronecker_terms()):
            p = int(torch.stack([term.A > 0 for term in terms]).any(0).sum())
        tensors = [t for t in self.state().values() if t.ndim > 1 and t.numel()]
        return q * p * (1 + sum(t.numel() // max(t.shape) for t in tensors))

    def of_inputs(self, inputs: Tensor) -> Self:
        """Return the curvature of some of the inputs, those whose inputs are never correlated.

        Args:
            inputs: Indices of the columns of Δ, shape [k].

        Raises:
            CurvatureError: The inputs are correlated, so that no part of them stands alone.
        """
        return self._with_columns(lambda tensor: tensor[..., inputs])

    def spread(self, inputs: Tensor, size: int) -> Self:
        """Undo :meth:`of_inputs`: the curvature over more inputs, none of it in the others.

        Args:
            inputs: Which columns of the larger Δ this curvature has, shape [k].
            size: How many columns that has.

        Raises:
            CurvatureError: The inputs are correlated, so that this is no part by inputs.
        """
        return self._with_columns(lambda tensor: spread_columns(tensor, inputs, size))

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that define the operator, by name."""
        return {name: getattr(self, name) for name in self.tensor_names}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """Rebuild an operator from :meth:`state`."""
        return cls(**state)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Self:
        """Return the operator on a device and in a dtype."""
        return self.from_state(
            {k: v.to(device=device, dtype=dtype) for k, v in self.state().items()}
        )

    def quadratic(self, delta: Tensor) -> Tensor:
        """Return the scalar ⟨Δ, F·Δ⟩."""
        return (delta * self.apply(delta)).sum()

    def matrix(self, q: int, p: int) -> Tensor:
        """Return F as a dense [q·p, q·p] matrix over the row-major vectorisation of Δ.

        For small blocks only: tests, figures and the oracle.
        """
        reference = next(iter(self.state().values()), torch.empty(0))
        basis = torch.eye(q * p, dtype=reference.dtype, device=reference.device)
        return torch.stack([self.apply(e.reshape(q, p)).reshape(-1) for e in basis])

    def _matrix(self, shape: tuple[int, int]) -> Tensor:
        q, p = shape
        if q * p > _DENSE:
            raise CurvatureError(
                f"a {self.kind} curvature of {q} \N{MULTIPLICATION SIGN} {p} parameters is too "
                f"large to form its matrix; let {type(self).__name__} define `eigenbasis` or "
                "`kronecker_terms`, or what was asked for itself"
            )
        return self.matrix(q, p)

    def _with_columns(self, change: Callable[[Tensor], Tensor]) -> Self:
        if not self.stands_by_input:
            raise CurvatureError(f"a {self.kind} curvature of these factors has no part by inputs")
        state = self.state()
        return self.from_state(state | {name: change(state[name]) for name in self.column_names})


def relative_difference(first: Operator, second: Operator, shape: tuple[int, int]) -> float | None:
    """Return ‖F − F'‖ / ‖F‖ in the Frobenius norm; None of F = 0.

    Args:
        first: F.
        second: F', of any kind.
        shape: (q, p) of the block that both belong to.
    """
    first, second = first.to(dtype=torch.float64), second.to(dtype=torch.float64)
    own = first.inner(first, shape)
    squared = own + second.inner(second, shape) - 2 * first.inner(second, shape)
    return float(squared.clamp(min=0) / own) ** 0.5 if own > 0 else None
