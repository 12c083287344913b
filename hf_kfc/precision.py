"""The precision in which sums are kept: that of the tensors, at least float32."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["wide", "wide_dtype"]


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float32, or the wider dtype of floating-point numbers."""
    return torch.promote_types(dtype, torch.float32)


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 or its own wider dtype; the same tensor if it is so already."""
    return tensor.to(wide_dtype(tensor.dtype))
