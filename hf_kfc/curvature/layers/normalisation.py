"""Rules of normalisation layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from typing_extensions import override

from ..blocks import Layout
from .base import LayerRule

__all__ = ["ChannelNormRule", "GainRule", "LayerNormRule"]


class LayerNormRule(LayerRule):
    """``nn.LayerNorm``: gain and bias act elementwise; the curvature is diagonal per example."""

    layout = Layout.ELEMENTWISE
    has_factors = False

    def features(self, module: nn.Module, x: Tensor, examples: int) -> Tensor:
        """Return the normalised input, one column of each gain: [N, R, q, 1]."""
        assert isinstance(module, nn.LayerNorm)
        normalised = functional.layer_norm(x, module.normalized_shape, eps=module.eps)
        return self.outputs(module, normalised, examples)[..., None]

    @override
    def outputs(self, module: nn.Module, g: Tensor, examples: int) -> Tensor:
        assert isinstance(module, nn.LayerNorm)
        return g.reshape(examples, -1, torch.Size(module.normalized_shape).numel())

    @override
    def leading(self, module: nn.Module, output: Tensor) -> tuple[int, ...]:
        assert isinstance(module, nn.LayerNorm)
        return tuple(output.shape[: -len(module.normalized_shape)])

    @override
    def add_squared_gradients(self, total: Tensor, a: Tensor, g: Tensor) -> None:
        total += (g[..., None] * a).sum(1).square().sum(0)


class GainRule(LayerNormRule):
    """A normalisation layer of any class, in each model another: RMSNorm and the like.

    Its output is c(x) + w ∘ n(x), and a bias if it has one: n(x) is the difference of its outputs
    without bias at w = 1 and w = 0, whatever it normalises by and whether it multiplies by w
    (Llama) or by 1 + w (Gemma). That a class is of this form is seen from its name alone, so the
    estimator makes sure of the gradient.
    """

    def features(self, module: nn.Module, x: Tensor, examples: int) -> Tensor:
        """Return the normalised input n(x), one column of each gain: [N, R, q, 1]."""
        zeros = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
        ones = zeros | {"weight": torch.ones_like(_weight(module))}
        normalised = functional_call(module, ones, (x,)) - functional_call(module, zeros, (x,))
        return self.outputs(module, normalised, examples)[..., None]

    @override
    def outputs(self, module: nn.Module, g: Tensor, examples: int) -> Tensor:
        return g.reshape(examples, -1, _weight(module).numel())

    @override
    def leading(self, module: nn.Module, output: Tensor) -> tuple[int, ...]:
        return tuple(output.shape[: -_weight(module).ndim])


class ChannelNormRule(GainRule):
    """``nn.GroupNorm`` and ``nn.BatchNorm``: gain and bias of a channel, the second dimension.

    The estimate runs in evaluation mode, in which BatchNorm normalises by its running statistics:
    what it makes of an example does not depend on the others.
    """

    @override
    def outputs(self, module: nn.Module, g: Tensor, examples: int) -> Tensor:
        return g.movedim(1, -1).reshape(examples, -1, g.shape[1])

    @override
    def leading(self, module: nn.Module, output: Tensor) -> tuple[int, ...]:
        return (output.shape[0], *output.shape[2:])


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight
