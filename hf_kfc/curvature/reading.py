"""A model and its examples as an estimate reads them: batches, positions, outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from ..curvature_arguments import CurvatureArguments, Products
from ..errors import CurvatureError
from ..precision import all_finite
from .batches import Collate, to_device
from .discovery import Layer
from .frozen_linear import FrozenLinear
from .likelihood import Outputs
from .objective import Forward, PositionMask, default_position_mask
from .positions import Positions
from .rare_tokens import RareTokens
from .sides import has_sides, masks_by_side

__all__ = ["Reading"]

_NOT_READ = (
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What models raise of a batch that they cannot read."""


@dataclass
class Reading:
    """What is read, and how."""

    model: nn.Module
    dataset: Any
    collate: Collate
    args: CurvatureArguments
    forward: Forward
    position_mask: PositionMask
    layers: Sequence[Layer]
    indices: Sequence[int]
    sides: dict[tuple[str, int], str] = field(default_factory=dict, init=False)
    """Whose positions a call of a layer has, the encoder's or the decoder's."""
    rare: RareTokens | None = field(default=None, init=False)
    """Tokens that are read as the unknown one."""

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def has_sides(self) -> bool:
        """Whether the masks are those of an encoder and a decoder."""
        return self.position_mask is default_position_mask and has_sides(self.model)

    def _forward(self, batch: Mapping[str, Tensor]) -> Outputs:
        products, batch = Products(self.args.products), self.collate.read(batch)
        read = {weight for layer in self.layers for weight in layer.read}
        linear = FrozenLinear(half=products is Products.BFLOAT16, left=read)
        with self._errors_told(batch), nullcontext() if products is Products.FULL else linear:
            outputs = self.forward(self.model, batch)
        if not isinstance(outputs, Outputs):
            raise CurvatureError(
                f"`forward=` returned a {type(outputs).__name__}; let it return Outputs(logits, "
                "labels), of hf_kfc.curvature"
            )
        if not all_finite(outputs.logits.detach()):
            raise CurvatureError(
                f"{type(self.model).__name__} gave logits that are NaN or infinite; the model has "
                "diverged, or its forward masks classes with -inf instead of the dtype's minimum"
            )
        return outputs

    @contextmanager
    def _errors_told(self, batch: Mapping[str, Any]) -> Iterator[None]:
        """Say of what model and batch an error is: alone and in evaluation mode nobody ran it."""
        try:
            yield
        except _NOT_READ as error:
            known = isinstance(error, CurvatureError | torch.OutOfMemoryError)
            if known or "torch.utils.checkpoint" in str(error):
                raise
            shapes = (f"{n} {list(v.shape)}" for n, v in batch.items() if isinstance(v, Tensor))
            raise CurvatureError(
                f"{type(self.model).__name__} cannot read {', '.join(shapes)} in evaluation mode "
                f"({type(error).__name__}: {error}); curvature reads every example alone too, with "
                "labels as the loss takes them: mend the collator, or give `forward=`"
            ) from error

    def _positions(self, batch: Mapping[str, Tensor], examples: int) -> Positions:
        if self.has_sides:
            return Positions.given(masks_by_side(batch, examples), self.sides)
        found: Any = self.position_mask(batch)
        masks = dict(found) if isinstance(found, Mapping) else {"": found}
        if not masks or not all(isinstance(m, Tensor) and m.ndim for m in masks.values()):
            raise CurvatureError(
                f"`position_mask=` returned {found!r:.80}; let it return a tensor that is True "
                "where a position counts, or such tensors by names of modules"
            )
        masks = {name: mask.bool() for name, mask in masks.items()}
        positions = Positions.given(masks.get("", masks), {})
        for mask in positions.by_module.values() or [positions.mask]:
            if len(mask) != examples:
                raise CurvatureError(
                    f"the position mask has {len(mask)} rows for a batch of {examples} examples; "
                    "its first dimension must be the examples; where a collator joins them in one "
                    "row, take curvature_batch_size=1"
                )
        return positions

    def _batches(
        self, indices: Sequence[int]
    ) -> Iterator[tuple[Sequence[int], list[Any], Mapping[str, Tensor]]]:
        """Yield the numbers of some examples, the examples, and the batch of them."""
        data, size = Subset(self.dataset, indices), self.args.curvature_batch_size
        for start in range(0, len(indices), size):
            chosen = range(start, min(start + size, len(indices)))
            rows = data.__getitems__(list(chosen))
            batch = to_device(self.collate(rows), self.device)
            yield [indices[place] for place in chosen], rows, self._seen(batch)

    def _seen(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return a batch as the curvature reads it."""
        return batch if self.rare is None else self.rare.without(batch)

    def _single(self, row: Any) -> dict[str, Any]:
        return to_device(self.collate([row]), self.device)

    def _first_batch(self) -> tuple[dict[str, Tensor], int]:
        return to_device(self.collate(self._first_rows), self.device), len(self._first_rows)

    @cached_property
    def _first_rows(self) -> list[Any]:
        """Two examples, or one where batches have one."""
        chosen = self.indices[: min(2, self.args.curvature_batch_size)]
        return [self.dataset[index] for index in chosen]
