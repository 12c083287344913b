"""What attacks read of examples: batches, what layers read, and what of it stands in probes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..curvature import Outputs
from ..curvature.accumulators import LayerBatch
from ..curvature.capture import capture
from ..curvature.discovery import Layer
from ..curvature.objective import Forward, PositionMask
from ..curvature.positions import Positions
from ..probes import Probes
from ..probes.tokens import lists_of

__all__ = ["ReadProbes", "batches_of", "read_layers"]


def batches_of(
    examples: Any,
    data_collator: Callable[[list[Any]], Mapping[str, Tensor]],
    size: int,
    device: torch.device,
) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Yield batches on a device, each with how many examples it has."""
    for start in range(0, len(examples), size):
        rows = [examples[index] for index in range(start, min(start + size, len(examples)))]
        yield len(rows), {name: value.to(device) for name, value in data_collator(rows).items()}


def read_layers(
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Iterator[tuple[int, dict[str, Tensor]]],
    forward: Forward,
    position_mask: PositionMask,
) -> Iterator[tuple[dict[str, Tensor], Outputs, dict[str, LayerBatch]]]:
    """Run a model over batches; yield each with its outputs, and what the layers read, by name."""
    for _, batch in batches:
        positions = Positions.given(position_mask(batch), {})
        with capture(layers, positions) as uses:
            outputs = forward(model, batch)
        read = {x.name: LayerBatch(x, uses[x.name], positions.examples) for x in layers}
        yield batch, outputs, read


class ReadProbes:
    """Scores examples by how much of them stands in probes."""

    def __init__(self, probes: Probes) -> None:
        lists = [ids for row in probes.rows for ids in lists_of(row.get("input_ids", []))]
        self._tokens = {token for ids in lists for token in ids}
        self._pairs = {pair for ids in lists for pair in pairwise(ids)}

    def scores(self, batch: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield the share of each example's tokens, and of its pairs of neighbours, in the probes.

        Args:
            batch: With ``input_ids`` [N, T] or [N, C, T], and ``attention_mask`` of that shape.

        Yields:
            Names and scores [N]; none of a batch without tokens.
        """
        ids, mask = batch.get("input_ids"), batch.get("attention_mask")
        if ids is None:
            return
        if mask is None or mask.shape != ids.shape:
            mask = torch.ones_like(ids)
        lines = (x.reshape(len(ids), -1, ids.shape[-1]).cpu() for x in (ids, mask))
        texts = [
            [line[kept > 0].tolist() for line, kept in zip(*own, strict=True)]
            for own in zip(*lines, strict=True)
        ]
        tokens = [[token for line in text for token in line] for text in texts]
        pairs = [[pair for line in text for pair in pairwise(line)] for text in texts]
        yield "tokens in probes", torch.tensor([_share(own, self._tokens) for own in tokens])
        yield "pairs of tokens in probes", torch.tensor([_share(own, self._pairs) for own in pairs])


def _share(parts: Sequence[Any], known: set[Any]) -> float:
    return sum(part in known for part in parts) / max(len(parts), 1)
