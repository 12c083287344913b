"""What can be wrong with an operator's tensors: one phrase each, beginning with their name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from ...precision import wide

__all__ = ["bad_factor", "bad_part", "negative", "not_orthonormal", "wrong_shape"]

# A factor estimated in float32 has eigenvalues down to about -1e-7 of its trace by rounding alone.
_INDEFINITE = 1e-6
_ASYMMETRIC = 1e-5
_STRIP = 128  # columns
_SKEWED = 1e-2  # as far as columns get from orthonormal by rounding to bfloat16


def wrong_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> list[str]:
    """Say if a tensor has another shape."""
    if tuple(tensor.shape) == shape:
        return []
    return [f"{name} has shape {list(tensor.shape)}, expected {list(shape)}"]


def negative(name: str, tensor: Tensor) -> list[str]:
    """Say if a tensor has a negative entry, or NaN."""
    lowest = float(tensor.min()) if tensor.numel() else 0.0
    return [] if lowest >= 0 else [f"{name} has a negative entry ({lowest:.3g})"]


def bad_factor(name: str, factor: Tensor, size: int) -> list[str]:
    """Say if a factor, given as a matrix or its diagonal, is not positive semi-definite.

    Rounding to half precision moves eigenvalues by up to half a unit in the last place of the
    Frobenius norm (Weyl); that much is allowed.
    """
    if factor.ndim == 1:
        return wrong_shape(name, factor, (size,)) or negative(name, factor)
    if wrong := wrong_shape(name, factor, (size, size)):
        return wrong
    rounding = torch.finfo(factor.dtype).eps / 2
    factor = wide(factor)
    if not isfinite(scale := max(abs(float(x)) for x in torch.aminmax(factor))):
        return [f"{name} has entries that are not finite"]
    if (asymmetry := _asymmetry(factor)) > _ASYMMETRIC * scale:
        return [f"{name} is not symmetric (largest difference {asymmetry:.3g})"]
    shift = _INDEFINITE * float(factor.diagonal().abs().sum()) + torch.finfo(factor.dtype).tiny
    shift += rounding * float(factor.norm())
    shifted = factor.clone()
    shifted.diagonal().add_(shift)
    _, failed_at = torch.linalg.cholesky_ex(shifted)
    return [f"{name} is indefinite"] if int(failed_at) else []


def _asymmetry(factor: Tensor) -> float:
    """Return the largest |x_ij - x_ji|, strip by strip: a whole transpose is read out of order."""
    strips = [
        (factor[i:, i : i + _STRIP], factor[i : i + _STRIP, i:].T)
        for i in range(0, len(factor), _STRIP)
    ]
    return max((float((x - y).abs().max()) for x, y in strips), default=0.0)


def not_orthonormal(name: str, basis: Tensor, size: int) -> list[str]:
    """Say if the columns of a matrix are not orthonormal."""
    if wrong := wrong_shape(name, basis, (size, size)):
        return wrong
    basis = wide(basis)
    identity = torch.eye(size, dtype=basis.dtype, device=basis.device)
    error = float((basis.T @ basis - identity).abs().max())
    return [f"{name} is not orthonormal (error {error:.3g})"] if error > _SKEWED else []


def bad_part(
    state: Mapping[str, Tensor], part: Callable[..., Any], shape: tuple[int, int], what: str
) -> list[str]:
    """Say what is wrong with operators that are stacked, of the first in which anything is.

    Args:
        state: Their tensors, stacked in the first dimension.
        part: The kind of each.
        shape: (q, p) of each.
        what: What they are called.
    """
    if len(counts := {len(t) if t.ndim else 0 for t in state.values()}) > 1 or 0 in counts:
        found = ", ".join(f"{name} {list(t.shape)}" for name, t in state.items())
        return [f"{', '.join(state)} have no common number of {what}s ({found})"]
    for number, tensors in enumerate(zip(*state.values(), strict=True)):
        if wrong := part(*tensors).problems(shape):
            return [f"{phrase} in {what} {number}" for phrase in wrong]
    return []
