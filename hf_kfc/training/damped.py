"""Products with a damped curvature that hold no second copy of its factors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from ..curvature import Operator
from ..curvature.operators import StoredFactor
from ..precision import wide, wide_dtype

__all__ = ["Factor", "Placement", "Product"]

_ALIGNED = 16


class Placement:
    """Puts curvatures where their parameters are; what several layers share is moved once.

    Args:
        low: A dtype of few bits to multiply matrices in; None is that of the parameters.
    """

    def __init__(self, low: torch.dtype | None = None) -> None:
        self.low = low
        # The originals are kept with their copies: an id is free again when its tensor is gone.
        self._moved: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def operator(self, operator: Operator, device: torch.device) -> Operator:
        """Return an operator to multiply with; what is there already is not copied."""
        state = operator.state()
        return operator.from_state({name: self.tensor(t, device) for name, t in state.items()})

    def tensor(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Return a tensor on a device, in the dtype that it is stored in."""
        if tensor.device == device:
            return tensor
        key = (id(tensor), device)
        if key not in self._moved:
            self._moved[key] = (tensor, tensor.to(device))
        return self._moved[key][1]


@dataclass(frozen=True)
class Factor:
    """A factor plus damping, U Uᵀ + M + m·I.

    It is brought to the dtype that it is multiplied in for every product anew: that takes a
    fraction of the product's time, and a second copy would stay.

    Args:
        values: M, shape [n, n], or [n] if it is diagonal.
        shift: m.
        low: The dtype to multiply a matrix in; None is that of Δ. A diagonal keeps its digits.
        columns: U, shape [n, k], where M is diagonal; None without.
    """

    values: Tensor
    shift: float
    low: torch.dtype | None = None
    columns: Tensor | None = None

    def times(self, delta: Tensor) -> Tensor:
        """Return Δ (M + m·I) of Δ [k, n], in the dtype of Δ."""
        if self.values.ndim == 1:
            product = delta * self._diagonal(delta)
            if self.columns is None:
                return product
            U = self.columns.to(self.low or delta.dtype)
            return product.add_(delta.to(U.dtype) @ U @ U.T)
        dtype = self.low or delta.dtype
        product = _matmul(delta.to(dtype), self.values.to(dtype)).to(delta.dtype)
        return product.add_(delta, alpha=self.shift) if self.shift else product

    def from_left(self, delta: Tensor) -> Tensor:
        """Return (M + m·I) Δ of Δ [n, k], in the dtype of Δ."""
        if self.values.ndim == 1:
            product = self._diagonal(delta)[:, None] * delta
            if self.columns is None:
                return product
            U = self.columns.to(self.low or delta.dtype)
            return product.add_(U @ (U.T @ delta.to(U.dtype)))
        dtype = self.low or delta.dtype
        product = _matmul(self.values.to(dtype), delta.to(dtype)).to(delta.dtype)
        return product.add_(delta, alpha=self.shift) if self.shift else product

    def of(self, inputs: Tensor | slice) -> Factor:
        """Return the part of some of the inputs."""
        part = self.values[inputs] if self.values.ndim == 1 else self.values[inputs, inputs]
        columns = None if self.columns is None else self.columns[inputs]
        return replace(self, values=part, columns=columns)

    def _diagonal(self, delta: Tensor) -> Tensor:
        return self.values.to(delta.dtype) + self.shift


class Product:
    """Δ ↦ F·Δ with a damped F, Δ being laid out as its weight is.

    Of a Kronecker product, (G + g·I) Δ (A + a·I) needs no damped factors; of what is damped by
    adding ε·c·I, F·Δ + ε·c·Δ no damped F. Where inputs are rows, A Δ G is the same without
    transposing.

    Args:
        operator: A prior's, as stored: the damping is relative to its exact factors.
        shape: (q, p).
        damping: ε.
        inputs_are_rows: Whether Δ is [p, q], as the weight of an embedding, and not [q, p].
        placement: Puts the operator where Δ will be.
        device: Of Δ.
    """

    def __init__(
        self,
        operator: Operator,
        shape: tuple[int, int],
        damping: float,
        inputs_are_rows: bool,
        placement: Placement,
        device: torch.device,
    ) -> None:
        self._inputs_are_rows = inputs_are_rows
        # A curvature of single entries multiplies no matrices, and keeps its digits.
        self._low = placement.low if operator.cost(shape) > prod(shape) else None
        self.factors: list[tuple[Factor, Factor]] = []
        """G and A of each term of a sum of Kronecker products; empty of other curvatures."""
        if stored := operator.stored_factors():
            placed = placement.operator(operator, device).stored_factors()
            for one, there in zip(stored, placed, strict=True):
                G, A = (
                    Factor(own.values, damping * _mean_eigenvalue(exact), self._low, own.columns)
                    for exact, own in zip(one, there, strict=True)
                )
                self.factors.append((G, A))
            return
        shift = operator.shift(damping)
        self._shift, self._damping = shift or 0.0, damping if shift is None else 0.0
        self.operator = placement.operator(operator, device)

    def __call__(self, delta: Tensor, inputs: Tensor | None = None) -> Tensor:
        """Return F·Δ in the layout and the dtype of Δ.

        Args:
            delta: Shape [q, p], or [p, q] where inputs are rows.
            inputs: Which rows Δ holds, where inputs are rows and stand alone, shape [k]; None means
                all.
        """
        if not self.factors:
            operator = self.operator if inputs is None else self.operator.of_inputs(inputs)
            low = delta.to(self._low or delta.dtype)
            operator = operator.to(dtype=low.dtype)
            if self._damping:  # for every product anew: a damped copy would take memory again
                operator = operator.damped(self._damping)
            product = operator.apply(low.T).T if self._inputs_are_rows else operator.apply(low)
            product = product.to(delta.dtype)
            return product.add_(delta, alpha=self._shift) if self._shift else product
        total: Tensor | None = None
        for G, A in self.factors:
            own = A if inputs is None else A.of(inputs)
            left, right = (own, G) if self._inputs_are_rows else (G, own)
            product = right.times(left.from_left(delta))
            total = product if total is None else total.add_(product)
        assert total is not None
        return total

    def live_inputs(self) -> Tensor | None:
        """Return which inputs have any curvature, shape [p]; None if all have, or it is unknown."""
        matrices = (A.values.ndim > 1 or A.columns is not None or A.shift for _, A in self.factors)
        if not self.factors or any(matrices):
            return None
        return torch.stack([A.values > 0 for _, A in self.factors]).any(0)


def _matmul(left: Tensor, right: Tensor) -> Tensor:
    """Return the matrix product, with rows that start at multiples of 64 bytes (of float32).

    A bias makes rows of 385 or 1537 numbers, which MKL multiplies at down to 0.6 of the speed.
    """
    rows, columns = len(left), right.shape[1]
    if columns % _ALIGNED == 0 or left.dtype != torch.float32:
        return left @ right
    padded = left.new_empty(rows, columns + _ALIGNED - columns % _ALIGNED)
    return torch.mm(left, right, out=padded[:, :columns])


def _mean_eigenvalue(factor: StoredFactor) -> float:
    """In the factor's own digits: a mean of bfloat16 numbers is not to be rounded to one."""
    values, U = factor
    values = values if values.ndim == 1 else values.diagonal()
    mean = float(values.mean(dtype=wide_dtype(values.dtype)))
    return mean if U is None else mean + float(wide(U).square().sum() / len(U))
