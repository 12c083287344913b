"""What a rule is: how one kind of layer's inputs and output gradients become curvature.

Shapes: N examples, R positions (uses of the weight) per example, p inputs (bias included),
q outputs, V tokens. ``a`` are inputs, ``g`` gradients of the outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from ...curvature_arguments import Products
from ..blocks import Layout
from ..moments import add_second_moment

__all__ = ["LayerRule", "StackedRule"]

_IN_CACHE = 2**20
"""Elements of which a CPU need not wait for its memory: 4 MiB in float32."""


class LayerRule(ABC):
    """What the estimator asks of one kind of layer.

    A rule for a module class of one's own says how the weight is laid out and how an input becomes
    rows; :func:`register_rule` makes it known. On a first batch the estimator compares the gradient
    that the rule makes of inputs and output gradients with autograd's, and refuses another one.

    Example:
        >>> class Doubling(nn.Module):  # z = 2 x W, the weight stored [in, out]
        ...     def __init__(self, inputs, outputs):
        ...         super().__init__()
        ...         self.kernel = nn.Parameter(torch.randn(inputs, outputs))
        ...     def forward(self, x):
        ...         return 2 * x @ self.kernel
        >>> @register_rule(Doubling)
        ... class DoublingRule(LayerRule):
        ...     layout = Layout.IN_OUT
        ...     names = ("kernel", "bias")
        ...     def features(self, module, x, examples):
        ...         return 2 * x.reshape(examples, -1, x.shape[-1])
    """

    layout: Layout
    names: tuple[str, ...] = ("weight", "bias")
    """What the module calls its weight and, if it may have one, the bias that is added to the
    output; no other parameter is covered."""
    beside: ClassVar[tuple[str, ...]] = ()
    """Parameters that the module may own too, and that are a block of their own."""
    has_factors: ClassVar[bool] = True
    """Whether the layer has Kronecker factors; without, its curvature is always diagonal."""
    diagonal_inputs: ClassVar[bool] = False
    """Whether A is diagonal and kept as a vector."""
    chunk: ClassVar[int] = 2**25
    """Elements of per-example gradients that a GPU holds at once: 128 MiB in float32."""

    def refusal(self, module: nn.Module) -> str | None:
        """Say which setting of this module has no rule although its class has; None if all have."""
        return None

    def of(self, module: nn.Module) -> LayerRule:
        """Return the rule of a module with its settings, where the class has several."""
        return self

    def by_call(self, module: nn.Module) -> bool:
        """Say whether its input and output are those of a call of the module.

        Of others they are those of ``functional.linear`` or ``functional.embedding`` of its weight,
        wherever in the model that is.
        """
        return True

    def reading(self, module: nn.Module) -> tuple[object, ...]:
        """Return the settings that :meth:`inputs` depends on, to tell who shares an A."""
        return (self.has_bias(module),)

    def has_bias(self, module: nn.Module) -> bool:
        """Say whether the bias of a module is a part of its block."""
        return any(getattr(module, name, None) is not None for name in self.names[1:])

    @abstractmethod
    def features(self, module: nn.Module, x: Tensor, examples: int) -> Tensor:
        """Bring a layer's input to [N, R, p], without the constant 1 of the bias."""

    def inputs(self, module: nn.Module, x: Tensor, examples: int) -> Tensor:
        """Bring a layer's input to [N, R, p], the constant 1 of the bias last."""
        features = self.features(module, x, examples)
        if not self.has_bias(module):
            return features
        return torch.cat([features, features.new_ones(*features.shape[:-1], 1)], dim=-1)

    def outputs(self, module: nn.Module, g: Tensor, examples: int) -> Tensor:
        """Bring a layer's output, or its gradient, to [N, R, q]."""
        return g.reshape(examples, -1, g.shape[-1])

    def leading(self, module: nn.Module, output: Tensor) -> tuple[int, ...]:
        """Return the shape of an output without its features."""
        return tuple(output.shape[:-1])

    def add_input_moment(
        self, total: Tensor, features: Tensor, valid: Tensor, average: bool, products: Products
    ) -> None:
        """Add Σ a aᵀ over the positions that count, or over the per-example means of those.

        Args:
            total: Changed in place, [p, p] with the bias, or [p] if it is diagonal.
            features: Inputs without the constant 1 of the bias, [N, R, ...].
            valid: Which positions count [N, R].
            average: Average over the positions of an example first (``reduce``).
            products: How to multiply.
        """
        if average:
            counts = valid.sum(1)
            rows = (features * valid[..., None]).sum(1) / counts.clamp(min=1)[:, None]
            valid = counts > 0
        else:
            rows, valid = features.flatten(0, 1), valid.flatten()
        add_second_moment(total, rows if bool(valid.all()) else rows[valid], products)

    def rotate_inputs(self, a: Tensor, basis: Tensor) -> Tensor:
        """Express inputs in a basis given by its columns [p, p]."""
        return a @ basis

    def add_squared_gradients(self, total: Tensor, a: Tensor, g: Tensor) -> None:
        """Add the sum over examples of the squared per-example gradient, (Σ_r g_r a_rᵀ)².

        Args:
            total: Changed in place, [q, p].
            a: Inputs [N, R, p].
            g: Output gradients [N, R, q].
        """
        if a.shape[1] == 1:  # (g aᵀ)² = g² (a²)ᵀ
            total += g[:, 0].square().T @ a[:, 0].square()
            return
        step = max(1, self.held(total) // (a.shape[-1] * g.shape[-1]))
        for a_part, g_part in zip(torch.split(a, step), torch.split(g, step), strict=True):
            gradients = g_part.mT @ a_part
            if len(gradients) == 1:
                total.addcmul_(gradients[0], gradients[0])
            else:
                total += gradients.square_().sum(0)

    def held(self, total: Tensor) -> int:
        """Say how many elements of per-example gradients to hold at once."""
        return _IN_CACHE if total.device.type == "cpu" else self.chunk


class StackedRule(LayerRule):
    """A layer whose outputs fall into equal parts, each of which has inputs of its own.

    Its weight's matrix [q, p] is one above the other those of n layers of q/n outputs, and each of
    these has its own factors (:class:`~hf_kfc.curvature.KroneckerStack`).
    """

    @abstractmethod
    def number_of_parts(self, module: nn.Module) -> int:
        """Return n."""

    @abstractmethod
    def inputs_by_part(
        self, a: Tensor, valid: Tensor, parts: int, average: bool
    ) -> Tensor | list[Tensor]:
        """Return the inputs of each part at positions that count, [M_e, p].

        Args:
            a: Inputs [N, R, ...].
            valid: Which positions count [N, R].
            parts: n.
            average: Return their means over the positions of an example instead.
        """

    @abstractmethod
    def gradients_by_part(
        self, a: Tensor, g: Tensor, parts: int, together: bool
    ) -> Tensor | list[Tensor]:
        """Return the gradients of each part's outputs, [M_e, q/n].

        Args:
            a: Inputs [N, R, ...].
            g: Output gradients [N, R, ...].
            parts: n.
            together: Add up those of an example.
        """
