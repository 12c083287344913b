"""Linear layers of a frozen model: no weight gradient, and no product with rows without gradient.

Padding has no gradient, nor, in the last layer of an encoder that decides by its first token, has
any other token: autograd multiplies those zeros with the weight all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from .moments import nonzero_rows

__all__ = ["FrozenLinear", "is_plain"]

_NARROW = 32
"""Sizes below which a product is left in the model's precision: heads that score, for example."""
_WIDENING = 2
"""Ratio of a layer's sizes from which it is multiplied in bfloat16: the feed-forward layers, with
two thirds of an encoder's arithmetic. Rounding in query, key and value is amplified where the
softmax's gradient subtracts its mean."""


class FrozenLinear(TorchFunctionMode):
    """Inside this context, linear layers of frozen weights take the short way.

    Results are those of the plain layers, up to the order of summation. Layers with a trainable
    weight or bias, or under autocast, are left alone.

    Args:
        half: Multiply feed-forward layers in bfloat16, whose sums oneDNN and cuBLAS keep in
            float32; everything else (attention, normalisation, activations, heads) keeps the
            model's precision, which under autocast it would not.
        left: The ids of weights that are left alone: what reads them is recorded.
    """

    def __init__(self, half: bool, left: Collection[int] = ()) -> None:
        super().__init__()
        self._half = half
        self._left = left

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Take over ``linear`` and the ``addmm`` of GPT-2's ``Conv1D``."""
        kwargs = kwargs or {}
        if not kwargs and func is functional.linear and len(args) in (2, 3):
            x, weight, bias = args if len(args) == 3 else (*args, None)
            if _applies(x, weight, bias) and id(weight) not in self._left:
                return _Linear.apply(x, weight, bias, self._half)  # type: ignore[no-untyped-call]
        if not kwargs and func is torch.addmm and len(args) == 3:
            bias, x, weight = args
            if bias.ndim == 1 and _applies(x, weight, bias):
                return _Linear.apply(x, weight.T, bias, self._half)  # type: ignore[no-untyped-call]
        return func(*args, **kwargs)


class _Linear(torch.autograd.Function):
    """Of rows [..., p]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, half: bool) -> Tensor:
        ctx.dtype = torch.bfloat16 if half and _is_feed_forward(weight) else x.dtype
        ctx.save_for_backward(weight)
        # With its bias it would be a view, to which no model may write.
        rows = functional.linear(x.to(ctx.dtype), weight.to(ctx.dtype)).to(x.dtype)
        return rows if bias is None else rows.add_(bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        flat = gradient.reshape(-1, gradient.shape[-1])
        rows, used = nonzero_rows(flat)
        product = (rows.to(ctx.dtype) @ weight.to(ctx.dtype)).to(gradient.dtype)
        if used is not None:
            product = product.new_zeros(len(flat), product.shape[-1]).index_copy_(0, used, product)
        return product.reshape(*gradient.shape[:-1], product.shape[-1]), None, None, None


def _is_feed_forward(weight: Tensor) -> bool:
    small, large = sorted(weight.shape)
    return small >= _NARROW and large >= _WIDENING * small


def is_plain(x: Any) -> TypeGuard[Tensor]:
    """Say if something is a tensor, and not one of many at once, as inside ``torch.vmap``."""
    return isinstance(x, Tensor) and not torch._C._functorch.is_functorch_wrapped_tensor(x)


def _applies(x: Any, weight: Any, bias: Any) -> bool:
    return (
        is_plain(x)
        and type(weight) in (Tensor, torch.nn.Parameter)
        and not weight.requires_grad
        and not (isinstance(bias, Tensor) and bias.requires_grad)
        and x.dtype == weight.dtype
        and x.is_floating_point()
        and not torch.is_autocast_enabled(x.device.type)
    )
