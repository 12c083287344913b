"""The precision in which sums are kept: that of the tensors, at least float32, and finite."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["all_finite", "largest", "wide", "wide_dtype"]


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float32, or the wider dtype of floating-point numbers."""
    return torch.promote_types(dtype, torch.float32)


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 or its own wider dtype; the same tensor if it is so already."""
    return tensor.to(wide_dtype(tensor.dtype))


def largest(tensor: Tensor) -> Tensor:
    """Return the largest absolute value, without a tensor of all; NaN if any is.

    Args:
        tensor: Not empty.
    """
    return torch.stack(tensor.aminmax()).abs().max()


def all_finite(tensor: Tensor) -> bool:
    """Return whether no number is NaN or infinite; the extremes are found faster than all asked."""
    return not tensor.numel() or bool(torch.stack(wide(tensor).aminmax()).isfinite().all())
