"""Rules of normalisation layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from typing_extensions import override

from ..blocks import Layout
from .base import LayerRule

__all__ = ["ChannelNormRule", "GainRule"]


class GainRule(LayerRule):
    """A normalisation layer: LayerNorm, or RMSNorm and the like, in each model another class.

    Gain and bias act elementwise; the curvature is diagonal per example. The output is c(x) +
    w ∘ n(x), and a bias if it has one: n(x) is the difference of its outputs without bias at w = 1
    and w = 0, whatever it normalises by and whether it multiplies by w (Llama) or by 1 + w (Gemma).
    That a class is of this form is seen from its name alone, so the estimator makes sure of the
    gradient.
    """

    layout = Layout.ELEMENTWISE
    has_factors = False

    @override
    def features(self, module: nn.Module, x: Tensor, examples: int) -> Tensor:
        """Return the normalised input n(x), one column of each gain: [N, R, q, 1]."""
        if type(module) is nn.LayerNorm:  # the same in a third of the time
            normalised = functional.layer_norm(x, module.normalized_shape, eps=module.eps)
        else:
            zeros = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
            ones = zeros | {"weight": torch.ones_like(_weight(module))}
            normalised = functional_call(module, ones, (x,))
            example = torch.linspace(1, 2, x[:1].numel()).reshape(x[:1].shape).to(x)
            if bool(functional_call(module, zeros, (example,)).any()):  # of most c(x) is 0
                normalised = normalised - functional_call(module, zeros, (x,))
        return self.outputs(module, normalised, examples)[..., None]

    @override
    def outputs(self, module: nn.Module, g: Tensor, examples: int) -> Tensor:
        return g.reshape(examples, -1, _weight(module).numel())

    @override
    def leading(self, module: nn.Module, output: Tensor) -> tuple[int, ...]:
        return tuple(output.shape[: -_weight(module).ndim])

    @override
    def add_squared_gradients(self, total: Tensor, a: Tensor, g: Tensor) -> None:
        total += (g[..., None] * a).sum(1).square().sum(0)  # a is [N, R, q, p]


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
