"""Curvatures of single parameters: the same for all (L2), or one number each (EWC)."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor
from typing_extensions import override

from ...precision import wide_dtype
from .base import Eigenbasis, Operator
from .checks import negative, wrong_shape

__all__ = ["Diagonal", "Identity", "mean_of"]


class Identity(Operator):
    """F = s·I: the L2 penalty towards the anchor.

    Args:
        scale: Scalar tensor s ≥ 0, shape [].
    """

    kind = "identity"
    tensor_names = ("scale",)

    def __init__(self, scale: Tensor | None = None) -> None:
        self.scale = torch.ones(()) if scale is None else scale

    @override
    def apply(self, delta: Tensor) -> Tensor:
        return self.scale * delta

    @override
    def damped(self, epsilon: float) -> Self:
        """Return (1 + ε)·F."""
        return type(self)(self.scale * (1 + epsilon))

    @override
    def shift(self, epsilon: float) -> float:
        return epsilon * mean_of(self.scale)

    @override
    def problems(self, shape: tuple[int, int]) -> list[str]:
        return wrong_shape("scale", self.scale, ()) or negative("scale", self.scale)

    @override
    def eigenbasis(self, shape: tuple[int, int]) -> Eigenbasis:
        return Eigenbasis(self.scale.expand(shape))

    @override
    def scaled(self, weight: float) -> Self:
        return type(self)(weight * self.scale)

    def __add__(self, other: Operator) -> Operator:
        if not isinstance(other, Identity):
            return super().__add__(other)
        return Identity(self.scale + other.scale)


class Diagonal(Operator):
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
    def apply(self, delta: Tensor) -> Tensor:
        return self.diagonal * delta

    @override
    def damped(self, epsilon: float) -> Self:
        """Return F + ε·mean(d)·I."""
        return type(self)(self.diagonal + epsilon * self.diagonal.mean())

    @override
    def shift(self, epsilon: float) -> float:
        return epsilon * mean_of(self.diagonal)

    @override
    def problems(self, shape: tuple[int, int]) -> list[str]:
        wrong = wrong_shape("diagonal", self.diagonal, shape)
        return wrong or negative("diagonal", self.diagonal)

    @override
    def eigenbasis(self, shape: tuple[int, int]) -> Eigenbasis:
        return Eigenbasis(self.diagonal)

    @override
    def input_moment(self) -> Tensor:
        return self.diagonal.sum(0)

    @override
    def cost(self, shape: tuple[int, int]) -> int:
        return shape[0] * shape[1]

    @override
    def scaled(self, weight: float) -> Self:
        return type(self)(weight * self.diagonal)

    def __add__(self, other: Operator) -> Operator:
        if not isinstance(other, Diagonal):
            return super().__add__(other)
        return Diagonal(self.diagonal + other.diagonal)


def mean_of(values: Tensor) -> float:
    """Return a mean; that of bfloat16 numbers is not rounded to one."""
    return float(values.mean(dtype=wide_dtype(values.dtype)))
