"""Factors of whole gradients: what differs between uses of a weight, and what they have in common.

The gradient of an example that uses a weight at R positions is

    Σ_r g_r a_rᵀ = Σ_r (g_r − ḡ)(a_r − ā)ᵀ + R ḡ āᵀ.

In a ranker, whose candidates share a softmax, what the candidates have in common cancels in it,
but not in a sum over positions of g_r g_rᵀ and of a_r a_rᵀ. So each part has a Kronecker product of
its own, F ≈ F_w + F_b, with the partial traces that the part has over all examples:

    A = E[XᵀX] / E‖X‖², G = E[X Xᵀ] with X = Σ_r g_r (a_r − ā)ᵀ, or X = (Σ_r g_r) āᵀ.

A product with the partial traces of F is F itself wherever F is one; its trace is that of F always.
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from ..curvature_arguments import Products
from ..precision import wide
from .accumulators import Accumulator, LayerBatch
from .discovery import Layer
from .layers import EmbeddingRule
from .moments import add_second_moment, whole
from .operators import Kronecker, KroneckerSum, Operator

__all__ = ["Centred"]

_CHUNK = 2**25  # elements of per-example gradients held at once: 128 MiB in float32
_ROUNDING = 1e-7  # share of the trace below which a part is the rounding of float32


class Centred(Accumulator):
    """Partial traces of the second moments of an example's gradient, within and between uses.

    An embedding has one part: its inputs are one-hot, so A is the diagonal of what each token's
    summed gradient is squared.

    Args:
        layer: The layer.
        products: How to multiply.
    """

    def __init__(self, layer: Layer, products: Products) -> None:
        super().__init__(layer)
        q, p = layer.shape
        self.products = products
        parts, size = (1, (p,)) if layer.rule.diagonal_inputs else (2, (p, p))
        self.A, self.G = layer.zeros(parts, *size), layer.zeros(parts, q, q)
        self._mean = self._centred = torch.empty(0)

    @override
    def add_inputs(self, batch: LayerBatch) -> None:
        super().add_inputs(batch)
        if not self.layer.rule.diagonal_inputs:
            a, valid = batch.a, batch.valid[..., None]  # [N, R, p], [N, R, 1]
            self._mean = (a * valid).sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp(min=1)
            self._centred = (a - self._mean) * valid

    @override
    def add_gradients(self, batch: LayerBatch) -> None:
        g = wide(batch.g)
        rule = self.layer.rule
        if isinstance(rule, EmbeddingRule):
            tokens, rows = rule.token_gradients(batch.a, g)
            self.A[0].index_add_(0, tokens, rows.square().sum(1))
            add_second_moment(self.G[0], rows, self.products)
            return
        if g.shape[1] > 1:
            self._add(0, self._centred, g)
        self._add(1, self._mean, g.sum(1, keepdim=True))

    def _add(self, part: int, a: Tensor, g: Tensor) -> None:
        """Add E[XᵀX] and E[X Xᵀ] of X = Σ_r g_r a_rᵀ, by X or by ⟨a_r, a_s⟩ and ⟨g_r, g_s⟩."""
        (_, R, p), q = a.shape, g.shape[-1]
        if R * (2 * R * (p + q) + p * p + q * q) < q * p * (R + (q + p) / 2):
            self.A[part] += a.flatten(0, 1).T @ (g @ g.mT @ a).flatten(0, 1)
            self.G[part] += g.flatten(0, 1).T @ (a @ a.mT @ g).flatten(0, 1)
            return
        step = max(1, _CHUNK // (q * p))
        for a_part, g_part in zip(torch.split(a, step), torch.split(g, step), strict=True):
            X = g_part.mT @ a_part
            add_second_moment(self.A[part], X.flatten(0, 1), self.products)
            add_second_moment(self.G[part], X.mT.flatten(0, 1), self.products)

    @override
    def totals(self) -> list[Tensor]:
        return [self.A, self.G, *super().totals()]

    @override
    def factors(self, num_examples: int) -> tuple[Tensor, Tensor]:
        terms = self.operator(num_examples).kronecker_terms()
        A = torch.stack([term.A * term.G.trace() for term in terms]).sum(0)
        return A, torch.stack([term.G for term in terms]).sum(0)

    @override
    def operator(self, num_examples: int) -> Operator:
        parts = [
            (A if A.ndim == 1 else whole(A, self.products), whole(G, self.products) / num_examples)
            for A, G in zip(self.A, self.G, strict=True)
        ]
        traces = torch.stack([G.trace() for _, G in parts])
        least = _ROUNDING * float(traces.sum())
        kept = [
            Kronecker(A / (A.sum() if A.ndim == 1 else A.trace()), G)
            for (A, G), size in zip(parts, traces.tolist(), strict=True)
            if size > least
        ]
        if not kept:  # no example has a gradient
            A, G = parts[-1]
            return Kronecker(torch.zeros_like(A), torch.zeros_like(G))
        return kept[0] if len(kept) == 1 else KroneckerSum.of(kept)
