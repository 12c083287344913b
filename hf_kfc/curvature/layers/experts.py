"""Experts that are fused into one tensor of three dimensions: their rule and their products.

The mixture-of-experts models of transformers leave the products of experts to one of several
implementations. The one here keeps the tokens in their order, so that it is known which row of
which expert belongs to which example.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import handle_torch_function, has_torch_function
from typing_extensions import override

from ..blocks import Layout
from .base import StackedRule

__all__ = ["ExpertsRule", "are_experts", "find_experts_rule", "linear", "tokens_in_order"]

_NAME = "hf_kfc"
_SETTINGS = (
    "has_gate",
    "has_bias",
    "is_transposed",
    "has_post_expert_norm",
    "_apply_gate",
    "config",
)
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


# --- Their products -------------------------------------------------------------------------------


def are_experts(module: nn.Module) -> bool:
    """Say whether a module leaves its products to an implementation of transformers' choice."""
    is_whole = getattr(module, "_is_expert_parallel", None) is False
    return is_whole and all(hasattr(module, name) for name in _SETTINGS)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, experts: Tensor, transposed: bool
) -> Tensor:
    """Multiply each row with the weight of its expert; seen by modes of torch functions.

    Args:
        x: Rows [T, k, p].
        weight: Of all experts, [n, q, p], or [n, p, q] if it is transposed.
        bias: Of all experts [n, q].
        experts: The expert of each row [T, k]; n stands for none, whose rows become 0.
        transposed: Whether the weight is.

    Returns:
        Shape [T, k, q].
    """
    if has_torch_function((x, weight)):
        args = (x, weight, bias, experts, transposed)
        found: Tensor = handle_torch_function(linear, (x, weight), *args)
        return found
    n = len(weight)
    numbers = experts.flatten().clamp(max=n)
    order = numbers.argsort(stable=True)
    counts = torch.bincount(numbers, minlength=n + 1).tolist()
    rows = torch.split(x.flatten(0, 1)[order], counts)
    weights = weight.mT.unbind(0) if transposed else weight.unbind(0)
    biases = [None] * n if bias is None else bias.unbind(0)
    parts = [functional.linear(*own) for own in zip(rows, weights, biases, strict=False)]
    parts.append(x.new_zeros(len(rows[n]), weights[0].shape[0]))
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return torch.cat(parts)[back].reshape(*experts.shape, -1)


@contextmanager
def tokens_in_order(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let experts multiply by :func:`linear` inside the block.

    Args:
        modules: Some that :func:`are_experts`.
    """
    configs: dict[int, Any] = {id(module.config): module.config for module in modules}
    before = {key: config._experts_implementation for key, config in configs.items()}
    if configs:
        from transformers.integrations.moe import (  # noqa: PLC0415 - only these models need it
            ALL_EXPERTS_FUNCTIONS,
        )

        ALL_EXPERTS_FUNCTIONS.register(_NAME, _forward)
    try:
        for config in configs.values():
            config._experts_implementation = _NAME
        yield
    finally:
        for key, config in configs.items():
            config._experts_implementation = before[key]


def _forward(
    module: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Compute what all implementations do: Σ over a token's experts of their weighted outputs."""

    def multiply(x: Tensor, name: str) -> Tensor:
        bias = getattr(module, f"{name}_bias") if module.has_bias else None
        return linear(x, getattr(module, name), bias, top_k_index, module.is_transposed)

    x = hidden_states[:, None].expand(-1, top_k_index.shape[1], -1)
    if module.has_gate:
        x = module._apply_gate(multiply(x, "gate_up_proj"))
    else:
        x = module.act_fn(multiply(x, "up_proj"))
    x = multiply(x, "down_proj")
    if module.has_post_expert_norm:
        x = module.post_expert_norm(x)
    x = x * top_k_weights.masked_fill(top_k_index >= len(module.down_proj), 0.0)[..., None]
    return x.sum(1).to(hidden_states.dtype)
