"""Curvature operators: symmetric positive semi-definite maps ``Δ ↦ F·Δ`` of one parameter block.

A block's parameters are seen as one matrix Δ of shape [q, p]: q outputs, p inputs (a bias is the
last input). Everything downstream (penalty, prior, tests, figures) is written against
:class:`Operator`, so a new kind of curvature is one new class here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..errors import CurvatureError

__all__ = ["OPERATORS", "Diagonal", "Identity", "Kronecker", "KroneckerEigen", "Operator"]

# A factor estimated in float32 has eigenvalues down to about -1e-7 of its trace by rounding alone.
_INDEFINITE = 1e-6
_ASYMMETRIC = 1e-5


class Operator(ABC):
    """A symmetric positive semi-definite linear map of matrices Δ of shape [q, p].

    Subclasses name their tensors in ``tensor_names``; those are constructor arguments, attributes
    and the keys of :meth:`state` alike.
    """

    kind: ClassVar[str]
    tensor_names: ClassVar[tuple[str, ...]]

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

        Args:
            epsilon: Relative damping ε ≥ 0; 0 returns an equal operator.
        """

    @abstractmethod
    def mismatch(self, shape: tuple[int, int]) -> list[str]:
        """Say what is wrong with the tensors for a block of this shape.

        Args:
            shape: (q, p).

        Returns:
            One phrase per misfit of shape, symmetry or definiteness; empty if there is none.
        """

    def of_inputs(self, inputs: Tensor) -> Self:
        """Return the curvature of some of the inputs, those whose inputs are never correlated.

        Args:
            inputs: Indices of the columns of Δ, shape [k].

        Raises:
            CurvatureError: The inputs are correlated, so that no part of them stands alone.
        """
        raise CurvatureError(f"a {self.kind} curvature of these factors has no part by inputs")

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


class Identity(Operator):
    """F = s·I: the L2 penalty towards the anchor.

    Args:
        scale: Scalar tensor s ≥ 0, shape [].
    """

    kind = "identity"
    tensor_names = ("scale",)

    def __init__(self, scale: Tensor | None = None) -> None:
        self.scale = torch.ones(()) if scale is None else scale

    def apply(self, delta: Tensor) -> Tensor:
        """Return s·Δ."""
        return self.scale * delta

    def damped(self, epsilon: float) -> Self:
        """Return (1 + ε)·F."""
        return type(self)(self.scale * (1 + epsilon))

    def mismatch(self, shape: tuple[int, int]) -> list[str]:
        """See :meth:`Operator.mismatch`."""
        wrong = _wrong_shape("scale", self.scale, ())
        return wrong or _negative("scale", self.scale)


class Diagonal(Operator):
    """F = diag(d): Elastic Weight Consolidation (Kirkpatrick et al. 2017, arXiv:1612.00796).

    Args:
        diagonal: d = mean over examples of the squared per-example gradient, shape [q, p].
    """

    kind = "diagonal"
    tensor_names = ("diagonal",)

    def __init__(self, diagonal: Tensor) -> None:
        self.diagonal = diagonal

    def apply(self, delta: Tensor) -> Tensor:
        """Return d ∘ Δ."""
        return self.diagonal * delta

    def of_inputs(self, inputs: Tensor) -> Self:
        """See :meth:`Operator.of_inputs`."""
        return type(self)(self.diagonal[:, inputs])

    def damped(self, epsilon: float) -> Self:
        """Return F + ε·mean(d)·I."""
        return type(self)(self.diagonal + epsilon * self.diagonal.mean())

    def mismatch(self, shape: tuple[int, int]) -> list[str]:
        """See :meth:`Operator.mismatch`."""
        wrong = _wrong_shape("diagonal", self.diagonal, shape)
        return wrong or _negative("diagonal", self.diagonal)


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

    def damped(self, epsilon: float) -> Self:
        """Return (G + ε·tr(G)/q·I) ⊗ (A + ε·tr(A)/p·I)."""
        return type(self)(_damp_factor(self.A, epsilon), _damp_factor(self.G, epsilon))

    def mismatch(self, shape: tuple[int, int]) -> list[str]:
        """See :meth:`Operator.mismatch`."""
        q, p = shape
        return _bad_factor("A", self.A, p) + _bad_factor("G", self.G, q)


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

    def damped(self, epsilon: float) -> Self:
        """Return F + ε·mean(s)·I (the eigenbasis is orthonormal, so s is shifted)."""
        shifted = self.second_moments + epsilon * self.second_moments.mean()
        return type(self)(self.U_A, self.U_G, shifted)

    def mismatch(self, shape: tuple[int, int]) -> list[str]:
        """See :meth:`Operator.mismatch`."""
        q, p = shape
        wrong = _wrong_shape("second_moments", self.second_moments, shape)
        wrong = wrong or _negative("second_moments", self.second_moments)
        wrong += _not_orthonormal("U_G", self.U_G, q)
        return (
            wrong if tuple(self.U_A.shape) == (0,) else wrong + _not_orthonormal("U_A", self.U_A, p)
        )


OPERATORS: dict[str, type[Operator]] = {
    cls.kind: cls for cls in (Identity, Diagonal, Kronecker, KroneckerEigen)
}
"""Operator classes by the ``kind`` under which they are stored."""


def _damp_factor(factor: Tensor, epsilon: float) -> Tensor:
    if factor.ndim == 1:
        return factor + epsilon * factor.mean()
    identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    return factor + epsilon * factor.diagonal().mean() * identity


def _wrong_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> list[str]:
    if tuple(tensor.shape) == shape:
        return []
    return [f"{name} has shape {list(tensor.shape)}, expected {list(shape)}"]


def _negative(name: str, tensor: Tensor) -> list[str]:
    lowest = float(tensor.min()) if tensor.numel() else 0.0
    return [] if lowest >= 0 else [f"{name} has a negative entry ({lowest:.3g})"]


def _bad_factor(name: str, factor: Tensor, size: int) -> list[str]:
    if factor.ndim == 1:
        return _wrong_shape(name, factor, (size,)) or _negative(name, factor)
    if wrong := _wrong_shape(name, factor, (size, size)):
        return wrong
    factor = factor.to(torch.promote_types(factor.dtype, torch.float32))
    if not bool(factor.isfinite().all()):
        return [f"{name} has entries that are not finite"]
    scale = float(factor.abs().max())
    asymmetry = float((factor - factor.T).abs().max())
    if asymmetry > _ASYMMETRIC * scale:
        return [f"{name} is not symmetric (largest difference {asymmetry:.3g})"]
    shift = _INDEFINITE * float(factor.diagonal().abs().sum()) + torch.finfo(factor.dtype).tiny
    identity = torch.eye(size, dtype=factor.dtype, device=factor.device)
    _, failed_at = torch.linalg.cholesky_ex(factor + shift * identity)
    return [f"{name} is indefinite"] if int(failed_at) else []


def _not_orthonormal(name: str, basis: Tensor, size: int) -> list[str]:
    if wrong := _wrong_shape(name, basis, (size, size)):
        return wrong
    identity = torch.eye(size, dtype=basis.dtype, device=basis.device)
    error = float((basis.T @ basis - identity).abs().max())
    return [f"{name} is not orthonormal (error {error:.3g})"] if error > 1e-3 else []
