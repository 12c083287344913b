"""Kronecker factors of each part of a layer whose parts have inputs of their own."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from typing_extensions import override

from ..curvature_arguments import Sharing
from ..precision import wide
from .accumulators import Accumulator, LayerBatch
from .discovery import Layer
from .layers import StackedRule
from .operators import KroneckerStack

__all__ = ["StackFactors"]


class StackFactors(Accumulator):
    """Σ a aᵀ and Σ g gᵀ of each group of a convolution, or of each expert.

    A part's A is a mean over the positions that it sees; its G over all examples, also those of
    which it sees nothing: so the part has the curvature that it had as a layer of its own.

    Args:
        layer: The layer.
        sharing: How positions are treated; not ``centred``.
    """

    def __init__(self, layer: Layer, sharing: Sharing) -> None:
        super().__init__(layer)
        self.rule = cast(StackedRule, layer.rule)
        self.sharing = sharing
        q, p = layer.shape
        n = self.rule.number_of_parts(next(iter(layer.modules.values())))
        self.A, self.G = layer.zeros(n, p, p), layer.zeros(n, q // n, q // n)
        self.rows = torch.zeros(n, dtype=torch.float64, device=self.A.device)

    @override
    def add_inputs(self, batch: LayerBatch) -> None:
        super().add_inputs(batch)
        average = self.sharing is Sharing.REDUCE
        rows = self.rule.inputs_by_part(batch.a, batch.valid, len(self.A), average)
        _add_moments(self.A, rows)
        self.rows += self.rows.new_tensor([len(own) for own in rows])

    @override
    def add_gradients(self, batch: LayerBatch) -> None:
        together = self.sharing is Sharing.REDUCE
        g = wide(batch.g)
        _add_moments(self.G, self.rule.gradients_by_part(batch.a, g, len(self.G), together))

    @override
    def totals(self) -> list[Tensor]:
        return [self.A, self.G, self.rows, *super().totals()]

    @override
    def operator(self, num_examples: int) -> KroneckerStack:
        counts = self.rows.clamp(min=1).to(self.A)[:, None, None]
        average = self.sharing is Sharing.AVERAGE
        G = self.G / (counts if average else num_examples)
        return KroneckerStack((self.A / counts)[:, None], G[:, None])


def _add_moments(totals: Tensor, rows: Tensor | list[Tensor]) -> None:
    """Add Σ r rᵀ of each part's rows [M_e, k] to its total [n, k, k]."""
    if isinstance(rows, Tensor):
        totals.baddbmm_(rows.mT, rows)
        return
    for total, own in zip(totals, rows, strict=True):
        if len(own):
            total.addmm_(own.T, own)
