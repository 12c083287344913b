"""What is summed over examples for each layer, and the operator it becomes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from typing_extensions import override

from ..curvature_arguments import Products, Sharing
from ..errors import CurvatureError
from ..precision import wide
from .capture import Use
from .discovery import Layer
from .layers import EmbeddingRule, TiedEmbeddingRule
from .moments import add_second_moment, mirrored, nearest_definite, nonzero_rows
from .operators import Diagonal, Kronecker, KroneckerEigen, Operator
from .positions import PositionsError

__all__ = [
    "Accumulator",
    "LayerBatch",
    "LayerChangedError",
    "SquaredGradients",
    "make_accumulators",
    "rotate_accumulators",
    "squared_gradients",
    "valid_positions",
]


class LayerChangedError(CurvatureError):
    """A layer does in a later batch what its rule cannot cover.

    Args:
        layer: The layer.
        reason: What it does.
        diagonal: Whether its diagonal is still right by its rule.
    """

    def __init__(self, layer: Layer, reason: str, *, diagonal: bool = False) -> None:
        super().__init__(f"layer '{layer.name}': {reason}")
        self.layer = layer
        self.reason = reason
        self.diagonal = diagonal


class LayerBatch:
    """One layer's tensors for one batch, all its uses side by side.

    Args:
        layer: The layer.
        uses: Its calls in this forward pass.
        examples: In the batch.
    """

    def __init__(self, layer: Layer, uses: Sequence[Use], examples: int) -> None:
        self.layer = layer
        self.uses = uses
        self.examples = examples
        self._gradients: Sequence[Tensor | None] = [None] * len(uses)

    @cached_property
    def features(self) -> Tensor:
        """Inputs without the constant 1 of the bias [N, R, ...], in the model's precision."""
        return self._side_by_side(self.layer.rule.features)

    @cached_property
    def a(self) -> Tensor:
        """Inputs [N, R, p]."""
        inputs = self._side_by_side(self.layer.rule.inputs)
        return wide(inputs) if inputs.is_floating_point() else inputs  # token ids

    @cached_property
    def valid(self) -> Tensor:
        """Which positions count [N, R].

        Raises:
            PositionsError: No mask is known for a call, or none of its levels fits.
        """
        return torch.cat([valid_positions(self.layer, use) for use in self.uses], dim=1)

    def set_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        """Take the gradients of the uses' outputs, in their order; None is zero."""
        self._gradients = gradients

    @property
    def g(self) -> Tensor:
        """Output gradients [N, R, q], in the model's precision."""
        rule = self.layer.rule
        return _cat(
            [
                rule.outputs(
                    use.module,
                    torch.zeros_like(use.output) if gradient is None else gradient,
                    self.examples,
                )
                for use, gradient in zip(self.uses, self._gradients, strict=True)
            ]
        )

    def of(self, kind: type[nn.Module]) -> LayerBatch:
        """Return the uses by one kind of module alone, of a layer whose weight two kinds share."""
        chosen = [i for i, use in enumerate(self.uses) if isinstance(use.module, kind)]
        part = LayerBatch(self.layer, [self.uses[i] for i in chosen], self.examples)
        part.set_gradients([self._gradients[i] for i in chosen])
        return part

    def _side_by_side(self, read: Callable[[nn.Module, Tensor, int], Tensor]) -> Tensor:
        name = self.layer.name
        return _cat([read(u.module, u.unchanged_input(name), self.examples) for u in self.uses])


class Accumulator(ABC):
    """Sums of one layer over examples.

    Args:
        layer: The layer.
    """

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        embedding = isinstance(layer.rule, EmbeddingRule)
        self.input_examples = layer.zeros(layer.shape[1]) if embedding else None
        """In how many examples each token was seen."""

    def add_inputs(self, batch: LayerBatch) -> None:
        """Add what depends on the inputs alone; called once per batch."""
        if self.input_examples is not None:
            rule = cast(EmbeddingRule, self.layer.rule)
            try:
                valid = batch.valid
            except PositionsError:  # padding is counted too then, as tokens of the text are
                valid = torch.ones_like(batch.a, dtype=torch.bool)
            self.input_examples += rule.input_examples(batch.a, valid, len(self.input_examples))

    @abstractmethod
    def add_gradients(self, batch: LayerBatch) -> None:
        """Add what depends on output gradients; called once per logit gradient."""

    def totals(self) -> list[Tensor]:
        """Return the tensors to be summed over processes."""
        return [] if self.input_examples is None else [self.input_examples]

    @abstractmethod
    def operator(self, num_examples: int) -> Operator:
        """Return the curvature, the mean over ``num_examples`` examples."""


class SquaredGradients(Accumulator):
    """Σ over examples of the squared per-example gradient, as it is or in an eigenbasis."""

    def __init__(self, layer: Layer, basis: tuple[Tensor, Tensor] | None = None) -> None:
        super().__init__(layer)
        self.basis = basis
        self.total = layer.zeros(*layer.shape)

    @override
    def add_gradients(self, batch: LayerBatch) -> None:
        a, g = batch.a, wide(batch.g)
        if self.basis is not None:
            U_A, U_G = self.basis
            a, g = self.layer.rule.rotate_inputs(a, U_A), g @ U_G
        self.layer.rule.add_squared_gradients(self.total, a, g)

    @override
    def totals(self) -> list[Tensor]:
        return [self.total, *super().totals()]

    @override
    def operator(self, num_examples: int) -> Operator:
        mean = self.total / num_examples
        return Diagonal(mean) if self.basis is None else KroneckerEigen(*self.basis, mean)


class TiedSquaredGradients(SquaredGradients):
    """Squared per-example gradients of a weight that an embedding and an output layer share."""

    @override
    def add_inputs(self, batch: LayerBatch) -> None:
        super().add_inputs(batch.of(nn.Embedding))

    @override
    def add_gradients(self, batch: LayerBatch) -> None:
        rule, looked_up, scored = self.layer.rule, batch.of(nn.Embedding), batch.of(nn.Linear)
        assert isinstance(rule, TiedEmbeddingRule)
        rule.add_squared_sums(self.total, looked_up.a, wide(looked_up.g), scored.a, wide(scored.g))


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
            total = self.total if self.leader.rule.diagonal_inputs else self.whole(self.total)
            self._factor = total / (num_examples if self.per_example else self.count)
        return self._factor

    def whole(self, total: Tensor) -> Tensor:
        """Return the whole matrix of a total; the rounding of its products is no curvature."""
        matrix = mirrored(total)
        return nearest_definite(matrix) if self.products is Products.BFLOAT16 else matrix


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
    def operator(self, num_examples: int) -> Kronecker:
        average = self.sharing is Sharing.AVERAGE
        G = self.moment.whole(self.total) / (self.moment.count if average else num_examples)
        return Kronecker(self.moment.factor(num_examples), G)


def valid_positions(layer: Layer, use: Use) -> Tensor:
    """Find which positions of one call of a layer count, shape [N, R].

    Args:
        layer: The layer.
        use: The call.

    Raises:
        PositionsError: No mask is known for it, or none of its levels fits.
    """
    if use.positions is None:
        raise PositionsError(
            f"no position mask is given for a call of layer '{layer.name}'; give `position_mask=` "
            "a function that returns masks by patterns of modules' names, one for this too"
        )
    return use.positions.valid(layer.rule.leading(use.module, use.output), layer.name)


def squared_gradients(layer: Layer) -> SquaredGradients:
    """Make what sums the squared per-example gradients of a layer.

    Args:
        layer: The layer.
    """
    tied = isinstance(layer.rule, TiedEmbeddingRule)
    return TiedSquaredGradients(layer) if tied else SquaredGradients(layer)


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
    of_inputs: dict[InputMoment, Tensor] = {}
    for name, accumulator in accumulators.items():
        if isinstance(accumulator, Factors):
            operator, moment = accumulator.operator(num_examples), accumulator.moment
            if moment not in of_inputs:
                of_inputs[moment] = _eigenvectors(operator.A)
            basis = of_inputs[moment], _eigenvectors(operator.G)
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


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    """Put the uses of a layer side by side; of one use, without copying it."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=1)
