"""Kronecker factors summed position by position, and the choice of what to sum for each layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
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
from .moments import add_second_moment, nonzero_rows, whole
from .operators import Kronecker

__all__ = ["make_accumulators", "rotate_accumulators"]


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
                batch.layer,
                f"it read the same inputs as '{self.leader.name}' for the first examples but not "
                "for a later batch: the model's computation depends on its input",
            )

    @property
    def count(self) -> float:
        """Number of positions that were summed."""
        return max(float(self.positions), 1.0)

    def factor(self, num_examples: int) -> Tensor:
        """Return A; the same tensor for every layer that shares it."""
        if self._factor is None:
            diagonal = self.leader.rule.diagonal_inputs
            total = self.total if diagonal else whole(self.total, self.products)
            self._factor = total / (num_examples if self.per_example else self.count)
        return self._factor


class Factors(Accumulator):
    """Σ a aᵀ and Σ g gᵀ of one layer."""

    def __init__(self, layer: Layer, moment: InputMoment, sharing: Sharing) -> None:
        super().__init__(layer)
        self.moment = moment
        self.sharing = sharing
        q, _ = layer.shape
        self.total = layer.zeros(q, q)

    @override
    def add_inputs(self, batch: LayerBatch) -> None:
        super().add_inputs(batch)
        self.moment.add(batch)

    @override
    def add_gradients(self, batch: LayerBatch) -> None:
        g = wide(batch.g).sum(1) if self.sharing is Sharing.REDUCE else batch.g.flatten(0, 1)
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
        average = self.sharing is Sharing.AVERAGE
        G = whole(self.total, self.moment.products)
        G = G / (self.moment.count if average else num_examples)
        return self.moment.factor(num_examples), G

    @override
    def operator(self, num_examples: int) -> Kronecker:
        return Kronecker(*self.factors(num_examples))


def make_accumulators(
    layers: Sequence[Layer],
    uses: Mapping[str, Sequence[Use]],
    kind: str,
    sharing: str,
    products: str,
    diagonal: Collection[str] = (),
) -> dict[str, Accumulator]:
    """Choose what to sum for every layer.

    Args:
        layers: The layers.
        uses: Of one forward pass; layers that read the same tensors will share one A.
        kind: ``diagonal``, or a Kronecker kind, which starts from the factors.
        sharing: How positions are treated.
        products: How factors are multiplied.
        diagonal: Names of layers whose curvature is diagonal in any case.

    Returns:
        One accumulator per layer name.
    """
    moments: dict[tuple[object, ...], InputMoment] = {}
    accumulators: dict[str, Accumulator] = {}
    for layer in layers:
        if kind == "diagonal" or not layer.rule.has_factors or layer.name in diagonal:
            accumulators[layer.name] = squared_gradients(layer)
            continue
        if sharing == Sharing.CENTRED:
            accumulators[layer.name] = Centred(layer, Products(products))
            continue
        calls = uses[layer.name]
        read = tuple((id(use.x), layer.rule.reading(use.module)) for use in calls)
        key = (layer.rule, layer.shape[1], read)
        moment = moments.setdefault(key, InputMoment(layer, Sharing(sharing), Products(products)))
        accumulators[layer.name] = Factors(layer, moment, Sharing(sharing))
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
