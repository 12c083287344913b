"""From a layer's tensors to [examples, positions, features]: which positions count, and for whom.

A weight is used at many positions of one example (tokens, candidates, pixels). Curvature needs to
know which rows of a layer's tensors belong to one example, and which of them are padding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Self

import torch
from torch import Tensor

from ..errors import CurvatureError

__all__ = ["Positions", "PositionsError"]


class PositionsError(CurvatureError):
    """Which positions of a layer's output count is not known."""


@dataclass(frozen=True)
class Positions:
    """The examples of a batch and the positions of each that count.

    Args:
        mask: True where a position counts, shape [examples, ...]: ``[B]`` if every position
            counts (images), ``[B, T]`` for tokens, ``[B, C, T]`` for tokens of candidates.
        by_module: Masks by glob patterns of modules' names, or by sides; empty if there is one.
        sides: Which of these masks a call of a layer has, by its name and number.
    """

    mask: Tensor
    by_module: Mapping[str, Tensor] = field(default_factory=dict)
    sides: Mapping[tuple[str, int], str] = field(default_factory=dict)

    @classmethod
    def given(
        cls, masks: Tensor | Mapping[str, Tensor], sides: Mapping[tuple[str, int], str]
    ) -> Self:
        """Take one mask, or several.

        Args:
            masks: One mask for all layers, or masks by glob patterns of modules' names or by sides.
            sides: The side of each call of each layer, where masks are by side.
        """
        if isinstance(masks, Tensor):
            return cls(masks)
        return cls(next(iter(masks.values())), masks, sides)

    def of(self, layer: str, call: int) -> Positions | None:
        """Return the positions of one call of a layer; None if no mask is given for it."""
        if not self.by_module:
            return self
        if (side := self.sides.get((layer, call))) is not None:
            return Positions(self.by_module[side])
        found = (mask for name, mask in self.by_module.items() if fnmatchcase(layer, name))
        return next((Positions(mask) for mask in found), None)

    @property
    def examples(self) -> int:
        """Number of examples in the batch."""
        return self.mask.shape[0]

    def valid(self, leading: tuple[int, ...], layer: str) -> Tensor:
        """Find which positions of a layer's output count.

        The leading dimensions (all but the features) are matched with the mask from the finest
        level (``B·C, T``) to the coarsest (``B``); examples come first in either.

        Args:
            leading: Shape of the layer's output without its feature dimension.
            layer: Name of the layer, for the error.

        Returns:
            Boolean tensor [examples, positions].

        Raises:
            PositionsError: The shape fits no level of the mask.
        """
        level = self.mask
        while True:
            if level.numel() == torch.Size(leading).numel() and _ordered(leading, level.shape):
                return level.reshape(self.examples, -1)
            if level.ndim == 1:
                break
            level = level.any(-1)
        return self._unmasked(leading, layer)

    def separate(self, x: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """Give every row its own copy of an output that a layer computed once for the batch.

        BERT looks position embeddings up once, ``[1, T, d]``, and adds them to every row; the
        gradient of that one output is already a sum over examples. Expanding the output before
        it is used changes no value and keeps the gradients of the examples apart.

        Args:
            x: The layer's input, shape [rows, ...].
            output: Its output, shape [rows, T, q].

        Returns:
            Both, with as many rows as the mask.
        """
        rows = self.mask.shape[:-1].numel()
        once = output.ndim == 3 and len(output) == len(x) == 1 and rows > 1
        if self.mask.ndim > 1 and once and output.shape[1] == self.mask.shape[-1]:
            return x.expand(rows, *x.shape[1:]), output.expand(rows, *output.shape[1:])
        return x, output

    def _unmasked(self, leading: tuple[int, ...], layer: str) -> Tensor:
        """Positions the mask does not describe (pixels, patches) all count, if none is masked."""
        if bool(self.mask.all()) and leading and leading[0] % self.examples == 0:
            shape = (self.examples, torch.Size(leading).numel() // self.examples)
            return torch.ones(shape, dtype=torch.bool, device=self.mask.device)
        raise PositionsError(
            f"the output of layer '{layer}' has leading dimensions {list(leading)}, which fit no "
            f"level of the position mask {list(self.mask.shape)}; give `position_mask=` a function "
            "that returns the mask of this model"
        )


def _ordered(leading: tuple[int, ...], level: torch.Size) -> bool:
    """Whether ``leading`` regroups ``level`` without moving a position to another example."""
    cuts = {torch.Size(leading[:i]).numel() for i in range(len(leading) + 1)}
    merged = {level[:i].numel() for i in range(1, len(level) + 1)}
    # (B·C, T) of (B, C, T): every boundary of the layer's shape is a boundary of the mask's.
    return cuts - {1} <= merged
