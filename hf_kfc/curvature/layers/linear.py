"""Rules of linear layers."""

from __future__ import annotations

from torch import Tensor, nn
from typing_extensions import override

from ..blocks import Layout
from .base import LayerRule

__all__ = ["BiasRule", "Gpt2Conv1dRule", "LinearRule", "ReadLinearRule"]


class LinearRule(LayerRule):
    """``nn.Linear``: weight [q, p]."""

    layout = Layout.OUT_IN

    @override
    def features(self, module: nn.Module, x: Tensor, examples: int) -> Tensor:
        return x.reshape(examples, -1, x.shape[-1])


class Gpt2Conv1dRule(LinearRule):
    """GPT-2's ``Conv1D``: a linear layer whose weight is stored [p, q]."""

    layout = Layout.IN_OUT


class ReadLinearRule(LinearRule):
    """The weight of a module without a rule, if ``functional.linear`` reads it: a router's."""

    @override
    def by_call(self, module: nn.Module) -> bool:
        return False


class BiasRule(LayerRule):
    """The bias of a linear layer whose weight is another layer's, a tied head's: g is its gradient.

    The bias of a vocabulary has as many entries as it has tokens, so the curvature is diagonal.
    """

    layout = Layout.ELEMENTWISE
    has_factors = False
    names = ("bias",)

    @override
    def features(self, module: nn.Module, x: Tensor, examples: int) -> Tensor:
        rows = x.reshape(examples, -1, x.shape[-1])
        return rows.new_ones(*rows.shape[:-1], 1)

    @override
    def add_squared_gradients(self, total: Tensor, a: Tensor, g: Tensor) -> None:
        total += g.sum(1).square().sum(0)[:, None]
