"""What is summed over examples for each layer, and the operator it becomes: diagonals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn
from typing_extensions import override

from ..errors import CurvatureError
from ..precision import wide
from .capture import Use
from .discovery import Layer
from .layers import EmbeddingRule, TiedEmbeddingRule
from .operators import Diagonal, KroneckerEigen, Operator
from .positions import PositionsError

__all__ = [
    "Accumulator",
    "LayerBatch",
    "LayerChangedError",
    "SquaredGradients",
    "squared_gradients",
    "valid_positions",
]


class LayerChangedError(CurvatureError):
    """A layer does in a batch what its rule cannot cover, or an example depends on its batch.

    Args:
        name: Of the layer; empty if batches are to be of one example.
        reason: What it does.
        diagonal: Whether its diagonal is still right by its rule.
    """

    def __init__(self, name: str, reason: str, *, diagonal: bool = False) -> None:
        super().__init__(f"layer '{name}': {reason}" if name else reason)
        self.name = name
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

    def reached(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield of each use with a gradient which positions count, and which it reaches [N, R]."""
        for use, gradient in zip(self.uses, self._gradients, strict=True):
            if gradient is not None:
                rows = self.layer.rule.outputs(use.module, gradient, self.examples)
                yield valid_positions(self.layer, use), rows.flatten(2).any(2)

    def of(self, kind: type[nn.Module], layer: Layer | None = None) -> LayerBatch:
        """Return the uses by one kind of module alone, of a layer whose weight two kinds share.

        Args:
            kind: Class of the modules.
            layer: With the rule of that kind; by default that of both.
        """
        chosen = [i for i, use in enumerate(self.uses) if isinstance(use.module, kind)]
        part = LayerBatch(layer or self.layer, [self.uses[i] for i in chosen], self.examples)
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

    def factors(self, num_examples: int) -> tuple[Tensor, Tensor] | None:
        """Return A and G whose eigenvectors EKFAC takes; None of what has no factors."""
        return None

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


def valid_positions(layer: Layer, use: Use) -> Tensor:
    """Find which positions of one call of a layer count, shape [N, R]."""
    if use.positions is None:
        raise PositionsError(
            f"no position mask is given for a call of layer '{layer.name}'; give `position_mask=` "
            "a function that returns masks by patterns of modules' names, one for this too"
        )
    return use.positions.valid(layer.rule.leading(use.module, use.output), layer.name)


def squared_gradients(layer: Layer) -> SquaredGradients:
    """Make what sums the squared per-example gradients of a layer."""
    tied = isinstance(layer.rule, TiedEmbeddingRule)
    return TiedSquaredGradients(layer) if tied else SquaredGradients(layer)


def _cat(tensors: Sequence[Tensor]) -> Tensor:
    """Put the uses of a layer side by side; of one use, without copying it."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=1)
