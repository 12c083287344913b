"""The rule of experts that are fused into one tensor of three dimensions."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from typing_extensions import override

from ..blocks import Layout
from ..experts import are_experts
from .stack import StackedRule

__all__ = ["ExpertsRule", "find_experts_rule"]

_WEIGHTS = ("gate_up_proj", "up_proj", "down_proj")


class ExpertsRule(StackedRule):
    """One of the weights of a module of experts: of each expert a linear layer.

    A row carries the number of its expert as its last entry: inputs are [N, R, p + 1].

    Args:
        weight: What the module calls the weight.
        transposed: Whether it is stored [n, p, q].
    """

    def __init__(self, weight: str, transposed: bool) -> None:
        self.names = (weight, f"{weight}_bias")
        self.layout = Layout.STACK_IN_OUT if transposed else Layout.STACK_OUT_IN

    @override
    def by_call(self, module: nn.Module) -> bool:
        return False

    @override
    def number_of_parts(self, module: nn.Module) -> int:
        return len(getattr(module, self.names[0]))

    @override
    def features(self, module: nn.Module, x: Tensor, examples: int) -> Tensor:
        return x.reshape(examples, -1, x.shape[-1])

    @override
    def inputs(self, module: nn.Module, x: Tensor, examples: int) -> Tensor:
        rows = self.features(module, x, examples)
        if not self.has_bias(module):
            return rows
        return torch.cat([rows[..., :-1], torch.ones_like(rows[..., :1]), rows[..., -1:]], dim=-1)

    @override
    def leading(self, module: nn.Module, output: Tensor) -> tuple[int, ...]:
        """Of an output [T, k, q] the tokens, each of which goes to k experts."""
        return tuple(output.shape[:-2])

    @override
    def inputs_by_part(
        self, a: Tensor, valid: Tensor, parts: int, average: bool
    ) -> Tensor | list[Tensor]:
        valid = valid.repeat_interleave(a.shape[1] // valid.shape[1], dim=1)
        return _by_part(a[..., :-1], a[..., -1], valid, parts, pool=average, mean=True)

    @override
    def gradients_by_part(
        self, a: Tensor, g: Tensor, parts: int, together: bool
    ) -> Tensor | list[Tensor]:
        valid = torch.ones_like(a[..., 0], dtype=torch.bool)
        return _by_part(g, a[..., -1], valid, parts, pool=together, mean=False)

    @override
    def add_squared_gradients(self, total: Tensor, a: Tensor, g: Tensor) -> None:
        by_part = total.reshape(-1, g.shape[-1], total.shape[1])
        for rows, gradients in zip(a, g, strict=True):  # [R, p + 1], [R, q/n]
            numbers = rows[:, -1].long()
            for number in numbers.unique().tolist():
                if number < len(by_part):
                    own = numbers == number
                    by_part[number] += (gradients[own].T @ rows[own, :-1]).square()


def find_experts_rule(
    modules: Collection[nn.Module], parameter: nn.Parameter
) -> ExpertsRule | None:
    """Return the rule of a parameter of a module of experts; None of any other.

    Args:
        modules: All that own the parameter.
        parameter: The parameter.
    """
    if len(modules) > 1 or not all(map(are_experts, modules)):
        return None
    (module,) = modules
    for rule in _RULES[bool(module.is_transposed)]:
        if any(getattr(module, name, None) is parameter for name in rule.names):
            return rule
    return None


_RULES = {
    transposed: tuple(ExpertsRule(name, transposed) for name in _WEIGHTS)
    for transposed in (False, True)
}


def _by_part(
    rows: Tensor, numbers: Tensor, valid: Tensor, parts: int, *, pool: bool, mean: bool
) -> list[Tensor]:
    """Sort rows by number, one list for each of the parts.

    Args:
        rows: Shape [N, R, k].
        numbers: Of each row's part [N, R]; n stands for none.
        valid: Which rows count [N, R].
        parts: n.
        pool: Add up those of a part in an example first.
        mean: Or take their mean.
    """
    valid = valid & (numbers < parts)
    example = torch.arange(len(rows), device=rows.device)[:, None].expand_as(valid)[valid]
    rows, number = rows[valid], numbers[valid].long()
    if pool:
        pairs, place, counts = torch.unique(
            example * parts + number, return_inverse=True, return_counts=True
        )
        rows = rows.new_zeros(len(pairs), rows.shape[-1]).index_add_(0, place, rows)
        rows, number = (rows / counts[:, None] if mean else rows), pairs % parts
    order = number.argsort(stable=True)
    return list(torch.split(rows[order], torch.bincount(number, minlength=parts).tolist()))
