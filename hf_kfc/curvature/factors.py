"""Kronecker factors summed position by position, and the choice of what to sum for each layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch import distributed as dist
from typing_extensions import override

from ..curvature_arguments import Products, Sharing
from ..precision import wide
from .accumulators import (
    Accumulator,
    LayerBatch,
    LayerChangedError,
    SquaredGradients,
    squared_gradients,
)
from .capture import Use
from .centred import Centred
from .discovery import Layer
from .layers import RULES, StackedRule, TiedEmbeddingRule
from .moments import add_second_moment, nonzero_rows, whole
from .operators import Kronecker, KroneckerSum
from .stacked import StackFactors

__all__ = ["has_factors", "make_accumulators", "rotate_accumulators"]

_IN_CACHE = 16  # rows of a large vocabulary's scores, squared at once


class InputMoment:
    """A of one layer, or of several that read the same inputs (query, key and value)."""

    def __init__(self, leader: Layer, sharing: Sharing, products: Products) -> None:
        self.leader = leader
        self.products = products
        self.per_example = sharing is Sharing.REDUCE and not leader.rule.diagonal_inputs
        p = leader.shape[1]
        self.total = leader.zeros(p) if leader.rule.diagonal_inputs else leader.zeros(p, p)
        self.positions = torch.zeros((), dtype=torch.float64, device=self.total.device)
        self._read: list[int] = []
        self._factor: Tensor | None = None

    def add(self, batch: LayerBatch) -> None:
        """Add a batch of the leader; make sure that another layer reads the same tensors."""
        read = [id(use.x) for use in batch.uses]
        if batch.layer is self.leader:
            self.leader.rule.add_input_moment(
                self.total, batch.features, batch.valid, self.per_example, self.products
            )
            self.positions += batch.valid.sum()
            self._read = read
        elif read != self._read:
            raise LayerChangedError(
                batch.layer.name,
                f"it read the same inputs as '{self.leader.name}' for the first examples but not "
                "for a later batch: the model's computation depends on its input",
            )

    @property
    def count(self) -> float:
        """Number of positions that were summed."""
        return max(float(self.positions), 1.0)

    def factor(self, num_examples: int) -> Tensor:
        """Turn the sums into A, once for every layer that shares it."""
        if self._factor is None:
            diagonal = self.leader.rule.diagonal_inputs
            total = self.total if diagonal else whole(self.total, self.products)
            self._factor = total.div_(num_examples if self.per_example else self.count)
        return self._factor


class Factors(Accumulator):
    """Σ a aᵀ and Σ g gᵀ of one layer.

    Args:
        layer: The layer.
        moment: Its A.
        sharing: How positions are treated.
        scores_tokens: Whether its outputs are the scores of a vocabulary: of G the diagonal then.
    """

    def __init__(
        self, layer: Layer, moment: InputMoment, sharing: Sharing, *, scores_tokens: bool = False
    ) -> None:
        super().__init__(layer)
        self.moment = moment
        self.sharing = sharing
        q, _ = layer.shape
        self.total = layer.zeros(q) if scores_tokens else layer.zeros(q, q)
        self._factor: Tensor | None = None

    @override
    def add_inputs(self, batch: LayerBatch) -> None:
        super().add_inputs(batch)
        self.moment.add(batch)

    @override
    def add_gradients(self, batch: LayerBatch) -> None:
        g = batch.g
        if self.layer.rule.diagonal_inputs and bool((fixed := batch.features < 0).any()):
            # A padding token's row never learns, whatever reads it (MobileBERT's trigrams do).
            g = g.masked_fill(fixed[..., None], 0)
        g = wide(g).sum(1) if self.sharing is Sharing.REDUCE else g.flatten(0, 1)
        if self.total.ndim == 1:
            for rows in torch.split(g, _IN_CACHE):  # squares of all would be written to memory
                self.total += wide(rows).square().sum(0)
            return
        products = self.moment.products
        rows = g if products is Products.FULL else nonzero_rows(g)[0]
        add_second_moment(self.total, rows, products)

    @override
    def totals(self) -> list[Tensor]:
        own = [self.total, *super().totals()]
        if self.moment.leader is not self.layer:
            return own
        return [*own, self.moment.total, self.moment.positions]

    @override
    def factors(self, num_examples: int) -> tuple[Tensor, Tensor]:
        if self._factor is None:  # in place of the sums: all together are as large as the model
            G = self.total if self.total.ndim == 1 else whole(self.total, self.moment.products)
            average = self.sharing is Sharing.AVERAGE
            self._factor = G.div_(self.moment.count if average else num_examples)
        return self.moment.factor(num_examples), self._factor

    @override
    def operator(self, num_examples: int) -> Kronecker:
        return Kronecker.of_sums(*self.factors(num_examples))


class TiedFactors(Accumulator):
    """Factors of both uses of a weight that an embedding and an output layer share.

    As under ``expand`` positions, the uses add up: F = G_e ⊗ diag(a_e) + A_h ⊗ diag(g_h) of
    [q, V] matrices, with the embedding's token frequencies a_e and the head's inputs A_h. The
    correlations between the scores of different tokens, V × V numbers, are left out.
    """

    def __init__(self, layer: Layer, sharing: Sharing, products: Products) -> None:
        super().__init__(layer)
        self.parts: dict[type[nn.Module], Factors] = {}
        for kind in (nn.Embedding, nn.Linear):
            own = replace(layer, rule=RULES[kind])
            moment = InputMoment(own, sharing, products)
            self.parts[kind] = Factors(own, moment, sharing, scores_tokens=kind is nn.Linear)
        self.input_examples = self.parts[nn.Embedding].input_examples

    @override
    def add_inputs(self, batch: LayerBatch) -> None:
        for kind, part in self.parts.items():
            part.add_inputs(batch.of(kind, part.layer))

    @override
    def add_gradients(self, batch: LayerBatch) -> None:
        for kind, part in self.parts.items():
            part.add_gradients(batch.of(kind, part.layer))

    @override
    def totals(self) -> list[Tensor]:
        return [total for part in self.parts.values() for total in part.totals()]

    @override
    def operator(self, num_examples: int) -> KroneckerSum:
        looked_up, scored = (part.operator(num_examples) for part in self.parts.values())
        return KroneckerSum.of([looked_up, Kronecker(A=scored.G, G=scored.A)])  # of the transpose


def has_factors(layer: Layer, kind: str, sharing: str) -> bool:
    """Say whether a layer's curvature is made of factors, which need to know what positions count.

    Args:
        layer: The layer.
        kind: Of curvature. Two products have no common eigenbasis, so that EKFAC's of a tied weight
            is the diagonal; so it is of groups and experts.
        sharing: How positions are treated; ``centred`` has the diagonal of these.
    """
    if isinstance(layer.rule, TiedEmbeddingRule | StackedRule):
        return kind == "kronecker" and sharing != Sharing.CENTRED
    return kind != "diagonal" and layer.rule.has_factors


def make_accumulators(
    layers: Sequence[Layer],
    uses: Mapping[str, Sequence[Use]],
    kind: str,
    sharing: str,
    products: str,
    diagonal: Collection[str] = (),
    scores: Collection[str] = (),
) -> dict[str, Accumulator]:
    """Choose what to sum for every layer.

    Args:
        layers: The layers.
        uses: Of one forward pass; layers that read the same tensors will share one A.
        kind: ``diagonal``, or a Kronecker kind, which starts from the factors.
        sharing: How positions are treated.
        products: How factors are multiplied.
        diagonal: Names of layers whose curvature is diagonal in any case.
        scores: Names of layers whose outputs are the scores of a large vocabulary.

    Returns:
        One accumulator per layer name.
    """
    moments: dict[tuple[object, ...], InputMoment] = {}
    accumulators: dict[str, Accumulator] = {}
    for layer in layers:
        if layer.name in diagonal or not has_factors(layer, kind, sharing):
            accumulators[layer.name] = squared_gradients(layer)
            continue
        if isinstance(layer.rule, TiedEmbeddingRule):
            accumulators[layer.name] = TiedFactors(layer, Sharing(sharing), Products(products))
            continue
        if isinstance(layer.rule, StackedRule):
            accumulators[layer.name] = StackFactors(layer, Sharing(sharing))
            continue
        if sharing == Sharing.CENTRED:
            accumulators[layer.name] = Centred(layer, Products(products))
            continue
        calls = uses[layer.name]
        read = tuple((id(use.x), layer.rule.reading(use.module)) for use in calls)
        key = (layer.rule, layer.shape[1], read)
        moment = moments.setdefault(key, InputMoment(layer, Sharing(sharing), Products(products)))
        accumulators[layer.name] = Factors(
            layer, moment, Sharing(sharing), scores_tokens=layer.name in scores
        )
    return accumulators


def rotate_accumulators(
    accumulators: Mapping[str, Accumulator], num_examples: int
) -> dict[str, Accumulator]:
    """Make the accumulators of EKFAC's second pass from the factors of the first.

    Args:
        accumulators: After the first pass; those without factors are left out.
        num_examples: That were summed.

    Returns:
        Squared gradients in the eigenbasis of each layer's factors.
    """
    rotated: dict[str, Accumulator] = {}
    of_inputs: dict[int, tuple[Tensor, Tensor]] = {}  # an id is free again when its tensor is gone
    for name, accumulator in accumulators.items():
        if (factors := accumulator.factors(num_examples)) is not None:
            A, G = factors
            if G.ndim == 1:  # of a large vocabulary's scores
                continue
            if id(A) not in of_inputs:
                of_inputs[id(A)] = A, _eigenvectors(A)
            basis = of_inputs[id(A)][1], _eigenvectors(G)
            rotated[name] = SquaredGradients(accumulator.layer, basis)
    return rotated


def _eigenvectors(factor: Tensor) -> Tensor:
    if factor.ndim == 1:
        return factor.new_empty(0)
    try:
        basis: Tensor = torch.linalg.eigh(factor).eigenvectors.contiguous()
    except RuntimeError:  # LAPACK gives up on some matrices in float32
        basis = torch.linalg.eigh(factor.double()).eigenvectors.contiguous().to(factor.dtype)
    if dist.is_initialized():  # processes on unlike machines may differ in signs and order
        dist.broadcast(basis, src=0)
    return basis
