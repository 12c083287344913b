"""Rules of convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd
from typing_extensions import override

from ..blocks import Layout
from .base import LayerRule, StackedRule

__all__ = ["ConvRule"]


class ConvRule(LayerRule):
    """``nn.Conv1d``, ``2d`` and ``3d`` (Grosse & Martens 2016): a position's input is its patch."""

    layout = Layout.OUT_IN

    @override
    def of(self, module: nn.Module) -> LayerRule:
        assert isinstance(module, _ConvNd)
        return self if module.groups == 1 else _GROUPED

    @override
    def reading(self, module: nn.Module) -> tuple[object, ...]:
        assert isinstance(module, _ConvNd)
        padding = (*module._reversed_padding_repeated_twice, module.padding_mode)
        patch = (module.kernel_size, module.stride, module.dilation)
        return (*super().reading(module), *patch, *padding)

    @override
    def features(self, module: nn.Module, x: Tensor, examples: int) -> Tensor:
        assert isinstance(module, _ConvNd)
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        sizes = zip(module.kernel_size, module.stride, module.dilation, strict=True)
        for dim, (size, step, dilation) in enumerate(
            sizes, start=2
        ):  # positions stay, taps go last
            x = x.unfold(dim, dilation * (size - 1) + 1, step)[..., ::dilation]
        # [rows, channels, *positions, *taps] to [rows, *positions, channels, *taps]
        patches = x.movedim(1, 1 + len(module.kernel_size))
        return patches.reshape(examples, -1, x.shape[1] * torch.Size(module.kernel_size).numel())

    @override
    def outputs(self, module: nn.Module, g: Tensor, examples: int) -> Tensor:
        return g.flatten(2).mT.reshape(examples, -1, g.shape[1])

    @override
    def leading(self, module: nn.Module, output: Tensor) -> tuple[int, ...]:
        return (output.shape[0], *output.shape[2:])


class GroupedConvRule(ConvRule, StackedRule):
    """A convolution in groups of channels, depthwise for one: each output sees its group's patch.

    Its weight is a stack of those of as many convolutions, each with factors of its own.
    """

    @override
    def of(self, module: nn.Module) -> LayerRule:
        return self

    @override
    def number_of_parts(self, module: nn.Module) -> int:
        assert isinstance(module, _ConvNd)
        return module.groups

    @override
    def features(self, module: nn.Module, x: Tensor, examples: int) -> Tensor:
        """Return the patches by group [N, R, groups, p]."""
        patches = super().features(module, x, examples)
        return patches.reshape(*patches.shape[:-1], self.number_of_parts(module), -1)

    @override
    def inputs_by_part(
        self, a: Tensor, valid: Tensor, parts: int, average: bool
    ) -> Tensor | list[Tensor]:
        rows = _mean(a, valid) if average else a[valid]
        return rows.movedim(1, 0)

    @override
    def gradients_by_part(
        self, a: Tensor, g: Tensor, parts: int, together: bool
    ) -> Tensor | list[Tensor]:
        rows = g.sum(1) if together else g.flatten(0, 1)
        return rows.reshape(len(rows), parts, -1).movedim(1, 0)

    @override
    def add_squared_gradients(self, total: Tensor, a: Tensor, g: Tensor) -> None:
        g = g.reshape(*a.shape[:3], -1)  # [N, R, groups, m] beside inputs [N, R, groups, p]
        for a_part, g_part in zip(
            *(torch.split(x, max(1, self.chunk // total.numel())) for x in (a, g)), strict=True
        ):
            gradient = torch.einsum("nrkm,nrkp->nkmp", g_part, a_part)
            total += gradient.square().sum(0).flatten(0, 1)


def _mean(a: Tensor, valid: Tensor) -> Tensor:
    """Return the mean [M, n, p] over positions that count, of examples that have any."""
    counts = valid.sum(1)
    sums = torch.einsum("nrkp,nr->nkp", a, valid.to(a.dtype))
    return (sums / counts.clamp(min=1)[:, None, None])[counts > 0]


_GROUPED = GroupedConvRule()
