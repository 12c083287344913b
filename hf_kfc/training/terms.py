"""One block of one prior in training: its value ⟨Δ, F·Δ⟩ and its gradient, from one product."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from ..curvature import Layout
from ..curvature.blocks import matrix_of, weight_of
from ..precision import wide
from .damped import Placement, Product
from .fitting import FittedBlock

__all__ = ["BlockTerm", "Change", "LowRankTerm"]

_ROWS = 4096
"""Rows of an embedding looked at together: on a CPU they stay in its cache."""
_MOST = 0.75
"""Share of moved rows from which all are multiplied: rows that have moved do not come back."""


class Change(NamedTuple):
    """Half the gradient of ⟨Δ, F·Δ⟩ with respect to one parameter.

    Args:
        values: In the parameter's shape, or some of its rows.
        rows: Which rows, shape [k], the others being zero; None means all.
    """

    values: Tensor
    rows: Tensor | None = None


class BlockTerm:
    """⟨Δ, F·Δ⟩ of one block with Δ = θ − θ*.

    Nothing is put on the parameters' device before the first product, and the anchor is used as
    the prior holds it where it is there already.

    Args:
        prior: Number of its prior.
        fitted: The prior's block, and where it is in the model.
        anchor: θ* of the block's parameters, by the prior's names.
        damping: ε of the curvature.
        placement: Shared by all blocks.
    """

    def __init__(
        self,
        prior: int,
        fitted: FittedBlock,
        anchor: Mapping[str, Tensor],
        damping: float,
        placement: Placement,
    ) -> None:
        block = fitted.block
        self.prior = prior
        self.names = fitted.names
        self.is_own = True
        """Whether this process multiplies it."""
        self.cost = block.operator.cost(block.shape)
        self.stays: bool | None = None
        """Whether the parameters are at the anchor and frozen; None if it is not known."""
        self._block = block
        self._rows = fitted.rows
        self._anchors = [anchor[name] for name in block.shapes]
        self._damping = damping
        self._placement = placement
        self._product: Product | None = None
        self._most_moved = False

    @property
    def is_embedding(self) -> bool:
        """Whether it is that of an embedding."""
        return self._block.is_embedding

    @property
    def all_names(self) -> tuple[str, ...]:
        """Names of all parameters that Δ depends on."""
        return self.names

    @property
    def needed(self) -> tuple[str, ...]:
        """Those of :attr:`all_names` that must be looked at; none if the value is 0 for good."""
        return () if self.stays else self.names

    def is_at_anchor(self, values: Mapping[str, Tensor]) -> bool:
        """Say whether Δ is exactly 0."""
        return all(
            torch.equal(*_promoted(self._covered(values[name]), anchor))
            for name, anchor in zip(self.names, self._anchors, strict=True)
        )

    def __call__(self, values: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Change]]:
        """Return ⟨Δ, F·Δ⟩ and, by the model's names, F·Δ: half its gradient."""
        weight = values[self.names[0]]
        if self._product is None:
            self._product = self._make_product(weight)
        if not self._by_inputs:
            delta = self._displacement(values)
            product = self._product(delta)
            return _dot(delta, product), self._split(product)
        rows, delta = self._moved_rows(weight)
        product = self._product(delta, rows)
        if rows is None:
            rows = self._rows
        elif self._rows is not None:
            rows = self._rows.to(rows.device)[rows]
        return _dot(delta, product), {self.names[0]: Change(product, rows)}

    @cached_property
    def _by_inputs(self) -> bool:
        return self.is_embedding and self._block.operator.stands_by_input

    def _make_product(self, weight: Tensor) -> Product:
        self._anchors = [self._placement.tensor(anchor, weight.device) for anchor in self._anchors]
        return Product(
            self._block.operator,
            self._block.shape,
            self._damping,
            self._block.layout is Layout.IN_OUT,
            self._placement,
            weight.device,
        )

    def _covered(self, weight: Tensor) -> Tensor:
        rows = self._rows
        return weight if rows is None else weight.index_select(0, rows.to(weight.device))

    def _moved_rows(self, weight: Tensor) -> tuple[Tensor | None, Tensor]:
        """Δ of the rows that F·Δ is not 0 in, and which of the covered ones they are."""
        assert self._product is not None
        covered, (anchor,) = self._covered(weight), self._anchors
        live = self._product.live_inputs()
        if self._most_moved and live is None:
            return None, covered - wide(anchor)
        step = _ROWS if covered.device.type == "cpu" else len(covered)
        found, moved = [], []
        for start in range(0, len(covered), step):
            part = slice(start, start + step)
            delta = covered[part] - wide(anchor[part])
            # Much faster than a comparison; where the norm underflows, so would F·Δ.
            is_moved = torch.linalg.vector_norm(delta, dim=1) > 0
            rows = (is_moved if live is None else is_moved & live[part]).nonzero().squeeze(1)
            found.append(rows + start)
            moved.append(delta.index_select(0, rows))
        rows, delta = torch.cat(found), torch.cat(moved)
        self._most_moved = len(rows) > _MOST * len(covered)
        return (None if len(rows) == len(covered) else rows), delta

    def _displacement(self, values: Mapping[str, Tensor]) -> Tensor:
        """Δ as its weight lies in memory: the bias is its last column, or row of IN_OUT."""
        weight, *bias = (self._covered(values[name]) for name in self.names)
        anchors = [wide(anchor) for anchor in self._anchors]
        if not bias:
            return self._matrix(weight - anchors[0])
        dtype = torch.promote_types(weight.dtype, anchors[0].dtype)
        q, p = self._block.shape
        is_in_out = self._block.layout is Layout.IN_OUT
        delta = weight.new_empty((p, q) if is_in_out else (q, p), dtype=dtype)
        parts = (delta[:-1], delta[-1]) if is_in_out else (delta[:, :-1], delta[:, -1])
        torch.sub(self._matrix(weight), self._matrix(anchors[0]), out=parts[0])
        torch.sub(bias[0].flatten(), anchors[1].flatten(), out=parts[1])
        return delta

    def _matrix(self, weight: Tensor) -> Tensor:
        layout = self._block.layout
        return weight if layout is Layout.IN_OUT else matrix_of(layout, weight)

    def _split(self, matrix: Tensor) -> dict[str, Change]:
        """Undo :meth:`_displacement`; the parts are views where they can be."""
        layout, (first, *others) = self._block.layout, self._block.anchor_shapes.values()
        if layout is Layout.IN_OUT:
            parts = [matrix[:-1], matrix[-1].reshape(others[0])] if others else [matrix]
        else:
            width = matrix.shape[1] - len(others)
            parts = [weight_of(layout, matrix[:, :width], first)]
            parts += [matrix[:, width].reshape(shape) for shape in others]
        return {
            name: Change(part, self._rows) for name, part in zip(self.names, parts, strict=True)
        }


class LowRankTerm(BlockTerm):
    """⟨Δ, F·Δ⟩ of a block whose weight has an adapter: Δ = W + s·B·A − W*.

    At W = W* and frozen, a Kronecker product needs no B·A:
    ⟨Δ, GΔA⟩ = s²·tr((Bᵀ G B)(A_l A A_lᵀ)), with A_l for the adapter's A. That takes q²r + p²r
    multiplications in the place of q²p + qp²; of factors of rank k, 2kr(q + p).
    """

    def __init__(
        self,
        prior: int,
        fitted: FittedBlock,
        anchor: Mapping[str, Tensor],
        damping: float,
        placement: Placement,
        rank: int,
    ) -> None:
        super().__init__(prior, fitted, anchor, damping, placement)
        assert fitted.adapter is not None
        self.adapter = fitted.adapter
        operator, shape = fitted.block.operator, fitted.block.shape
        numbers = sum(factor.numbers for pair in operator.stored_factors() for factor in pair)
        self._forms = not numbers or rank * numbers >= operator.cost(shape) - prod(shape)

    @property
    @override
    def all_names(self) -> tuple[str, ...]:
        return (*self.names, self.adapter.up, self.adapter.down)

    @property
    @override
    def needed(self) -> tuple[str, ...]:
        return self.all_names if self._forms or not self.stays else self.all_names[-2:]

    @override
    def __call__(self, values: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Change]]:
        up, down = (wide(values[name]) for name in (self.adapter.up, self.adapter.down))
        if self._product is None:
            self._product = self._make_product(up)
        if self.stays and not self._forms:
            return self._without_forming(up, down)
        return self._by_forming(values, up, down)

    def _without_forming(self, up: Tensor, down: Tensor) -> tuple[Tensor, dict[str, Change]]:
        assert self._product is not None
        square, weight_inputs = self.adapter.scale**2, slice(down.shape[1])
        value, by_up, by_down = up.new_zeros(()), torch.zeros_like(up), torch.zeros_like(down)
        for G, A in self._product.factors:
            g_up = G.from_left(up)  # [q, r]
            down_a = A.of(weight_inputs).times(down)  # [r, p]
            outer, inner = up.T @ g_up, down_a @ down.T  # [r, r], symmetric
            value += square * (outer * inner).sum()
            by_up.addmm_(g_up, inner, alpha=square)
            by_down.addmm_(outer, down_a, alpha=square)
        return value, {self.adapter.up: Change(by_up), self.adapter.down: Change(by_down)}

    def _by_forming(
        self, values: Mapping[str, Tensor], up: Tensor, down: Tensor
    ) -> tuple[Tensor, dict[str, Change]]:
        assert self._product is not None
        adapter, delta = self.adapter, self._displacement(values)
        weight, *_ = self._split(delta).values()  # a view
        update = torch.mm(up, down).mul_(adapter.scale)
        weight.values.add_(update.T if adapter.inputs_are_rows else update)
        product = self._product(delta)
        changes = self._split(product)
        by_weight = changes[self.names[0]].values
        by_weight = by_weight.T if adapter.inputs_are_rows else by_weight
        changes[adapter.up] = Change(adapter.scale * (by_weight @ down.T))
        changes[adapter.down] = Change(adapter.scale * (up.T @ by_weight))
        return _dot(delta, product), changes


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """The inner product of matrices; it makes no third one where both lie alike in memory."""
    if left.stride() == right.stride() and left.is_contiguous():
        return torch.dot(left.flatten(), right.flatten())
    return (left * right).sum()


def _promoted(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(left.dtype, right.dtype)
    return left.to(dtype), right.to(left.device, dtype)
