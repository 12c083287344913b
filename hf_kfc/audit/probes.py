"""What probes tell: whoever has them reads their inputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..probes import Probes
from ..probes.tokens import lists_of

__all__ = ["ReadProbes"]


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
