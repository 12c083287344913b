"""Experts in one tensor, token by token: what each of them reads and gives, for the estimator.

The mixture-of-experts models of transformers leave the products of experts to one of several
implementations. The one here keeps the tokens in their order, so that it is known which row of
which expert belongs to which example.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import handle_torch_function, has_torch_function

__all__ = ["are_experts", "linear", "tokens_in_order"]

_NAME = "hf_kfc"
_SETTINGS = (
    "has_gate",
    "has_bias",
    "is_transposed",
    "has_post_expert_norm",
    "_apply_gate",
    "config",
)


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
