"""An example alone, beside the same in its batch: F is of examples, whatever stands beside them.

A model may read padding (convolutions and Fourier transforms over tokens), or compare the examples
of a batch (negatives, the capacity of experts, ranges of quantized activations). Then it is given
one example at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ..precision import largest
from .accumulators import valid_positions
from .capture import Use
from .discovery import Layer
from .likelihood import Outputs
from .positions import PositionsError

__all__ = ["Seen", "padded", "taken_out"]

_SHARE, _HALF_SHARE = 1e-3, 0.1  # of the largest value: more than rounding


class Seen:
    """What a model makes of a batch.

    Args:
        uses: Of layers, by name.
        outputs: Scores and labels.
    """

    def __init__(self, uses: Mapping[str, Sequence[Use]], outputs: Outputs) -> None:
        self.uses, self.outputs = uses, outputs

    def differs(self, alone: Seen, row: int, layers: Collection[Layer]) -> bool:
        """Say if an example is something else in this batch than alone, where positions count.

        Args:
            alone: Of the batch of this one example.
            row: Of the example in this batch.
            layers: Whose outputs are compared, besides the scores.
        """
        pairs = [(alone._scores(0), self._scores(row))]
        classes = min(scores.shape[-1] for scores in pairs[0])  # candidates are padded too
        pairs = [(one[..., :classes], other[..., :classes]) for one, other in pairs]
        for layer in layers:
            calls = alone.uses[layer.name], self.uses[layer.name]
            if len(calls[0]) != len(calls[1]):
                return True
            with suppress(PositionsError):  # its diagonal needs no positions
                both = zip(*calls, strict=True)
                pairs += [(_rows(layer, a, 0), _rows(layer, b, row)) for a, b in both]
        # Of other shapes where padding counts, as no mask tells that it is some.
        return any(a.shape != b.shape or _differ(a, b) for a, b in pairs)

    def _scores(self, row: int) -> Tensor:
        return _chosen(self.outputs.logits[row].detach(), self.outputs.decided[row])


def _rows(layer: Layer, use: Use, row: int) -> Tensor:
    """Return an example's rows of a layer's output at positions that count."""
    valid = valid_positions(layer, use)
    outputs = layer.rule.outputs(use.module, use.output.detach(), len(valid))[row]
    times = len(outputs) // max(valid.shape[1], 1)  # a token goes to several experts
    return _chosen(outputs, valid[row].repeat_interleave(times))


def _chosen(rows: Tensor, which: Tensor) -> Tensor:
    """Choose rows; all of them without copying."""
    return rows if which.ndim and bool(which.all()) else rows[which]


def padded(singles: Sequence[Mapping[str, Any]]) -> list[int]:
    """Find the examples that a batch pads, those that it pads most first.

    Args:
        singles: What the collator makes of each alone.
    """
    sizes = [
        sum(value.numel() for value in single.values() if isinstance(value, Tensor))
        for single in singles
    ]
    return sorted((n for n, size in enumerate(sizes) if size < max(sizes)), key=sizes.__getitem__)


def taken_out(
    batch: Mapping[str, Any], row: int, single: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Take one example out of a batch, without padding; None if its tensors are not by example.

    Values are the batch's: a collator may draw others when it is asked again.

    Args:
        batch: A batch.
        row: Of the example.
        single: What the collator makes of it alone, which has no padding.
    """
    tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    if any(not t.ndim or len(t) != len(tensors[0]) for t in tensors):
        return None
    return {
        name: _cut(value[row], single[name][0])[None]
        if isinstance(value, Tensor) and isinstance(single.get(name), Tensor)
        else value
        for name, value in batch.items()
    }


def _cut(padded: Tensor, own: Tensor) -> Tensor:
    """Cut a tensor to a shape, at its end or at its beginning: where it is more like the other."""
    if padded.ndim != own.ndim or any(a < b for a, b in zip(padded.shape, own.shape, strict=True)):
        return padded
    sizes = zip(padded.shape, own.shape, strict=True)
    first = padded[tuple(slice(n) for n in own.shape)]
    last = padded[tuple(slice(length - n, None) for length, n in sizes)]
    return last if int((last == own).sum()) > int((first == own).sum()) else first


def _differ(found: Tensor, expected: Tensor) -> bool:
    """Say if numbers differ by more than rounding; scores of what is not offered are left out."""
    share = _HALF_SHARE if torch.finfo(found.dtype).eps > 1e-4 else _SHARE
    least = torch.finfo(found.dtype).min / 2
    if not found.numel():
        return False
    if not bool(torch.minimum(found.min(), expected.min()) > least):
        offered = torch.maximum(found, expected) > least
        found, expected = found[offered], expected[offered]
    return found.numel() > 0 and bool(largest(found - expected) > share * largest(expected))
