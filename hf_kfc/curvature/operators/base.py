"""What every curvature operator is and does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from ...errors import CurvatureError

__all__ = ["Operator", "spread_columns"]


class Operator(ABC):
    """A symmetric positive semi-definite linear map of matrices Δ of shape [q, p].

    Subclasses name their tensors in ``tensor_names``; those are constructor arguments, attributes
    and the keys of :meth:`state` alike. ``input_names`` are those of them that belong to the
    layer's inputs: layers that read the same inputs hold the same tensors there.
    """

    kind: ClassVar[str]
    tensor_names: ClassVar[tuple[str, ...]]
    input_names: ClassVar[tuple[str, ...]] = ()

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
    def mismatch(self, shape: tuple[int, int]) -> list[str]:
        """Say what is wrong with the tensors for a block of this shape.

        Args:
            shape: (q, p).

        Returns:
            One phrase per misfit of shape, symmetry or definiteness, which begins with the name of
            the tensor; empty if there is none.
        """

    def of_inputs(self, inputs: Tensor) -> Self:
        """Return the curvature of some of the inputs, those whose inputs are never correlated.

        Args:
            inputs: Indices of the columns of Δ, shape [k].

        Raises:
            CurvatureError: The inputs are correlated, so that no part of them stands alone.
        """
        raise CurvatureError(f"a {self.kind} curvature of these factors has no part by inputs")

    def spread(self, inputs: Tensor, size: int) -> Self:
        """Undo :meth:`of_inputs`: the curvature over more inputs, none of it in the others.

        Args:
            inputs: Which columns of the larger Δ this curvature has, shape [k].
            size: How many columns that has.

        Raises:
            CurvatureError: See :meth:`of_inputs`.
        """
        raise CurvatureError(f"a {self.kind} curvature of these factors is no part by inputs")

    def terms(self) -> Sequence[Operator]:
        """Return operators that add up to this one: a sum's Kronecker products, or itself."""
        return [self]

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


def spread_columns(tensor: Tensor, inputs: Tensor, size: int) -> Tensor:
    """Put columns [..., k] at some places of a larger tensor of zeros [..., size]."""
    larger = tensor.new_zeros(*tensor.shape[:-1], size)
    larger[..., inputs] = tensor
    return larger
