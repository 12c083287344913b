"""Curvatures of single parameters: the same for all (L2), or one number each (EWC)."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from .base import Operator, spread_columns
from .checks import negative, wrong_shape

__all__ = ["Diagonal", "Identity"]


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
        wrong = wrong_shape("scale", self.scale, ())
        return wrong or negative("scale", self.scale)


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

    def spread(self, inputs: Tensor, size: int) -> Self:
        """See :meth:`Operator.spread`."""
        return type(self)(spread_columns(self.diagonal, inputs, size))

    def damped(self, epsilon: float) -> Self:
        """Return F + ε·mean(d)·I."""
        return type(self)(self.diagonal + epsilon * self.diagonal.mean())

    def mismatch(self, shape: tuple[int, int]) -> list[str]:
        """See :meth:`Operator.mismatch`."""
        wrong = wrong_shape("diagonal", self.diagonal, shape)
        return wrong or negative("diagonal", self.diagonal)
