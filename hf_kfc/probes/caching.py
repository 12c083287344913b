"""The one run of the anchor over the inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..curvature.modes import frozen
from ..curvature.objective import Forward
from ..errors import ProbeError
from .forward import unlabelled_forward
from .inputs import Collator, collated
from .outputs import Cache, kept_of
from .rows import Rows

__all__ = ["ALL_CLASSES", "TOP_K", "outputs_of", "refuse_random"]

ALL_CLASSES = 1024
"""Of how many classes all log-probabilities are kept."""
TOP_K = 64
"""How many are kept of more."""


def outputs_of(
    model: nn.Module,
    rows: Rows,
    collator: Collator,
    top_k: int | None,
    batch_size: int,
    forward: Forward,
) -> Cache:
    """Run the anchor over all rows; see ``Probes.from_dataset``.

    Raises:
        ProbeError: The collator is random or hides padding, or the outputs cannot be kept.
    """
    device = next(model.parameters()).device
    parts = list[Cache]()
    with torch.no_grad(), frozen(model):
        starts = range(0, len(rows), batch_size)
        for start in tqdm(starts, desc="probes", unit="batch", disable=None):
            chosen = rows[start : start + batch_size]
            batch = collated(chosen, collator)
            if not parts:
                refuse_random(batch, collated(rows[start : start + batch_size], collator))
            outputs = forward(model, {name: value.to(device) for name, value in batch.items()})
            if len(outputs.logits) != len(chosen):
                raise ProbeError(
                    f"{len(chosen)} examples gave logits of shape {list(outputs.logits.shape)}; "
                    "the first size must be that of the batch"
                )
            if forward is unlabelled_forward:
                _refuse_hidden_padding(chosen, batch, outputs.logits)
            kept = top_k
            if kept is None and outputs.logits.shape[-1] > ALL_CLASSES:
                kept = TOP_K
            parts.append(kept_of(outputs, kept))
    cache = Cache.join(parts)
    if not int(cache.decisions.sum()):
        raise ProbeError("the examples have no decision; look at their attention_mask")
    return cache


def refuse_random(batch: Mapping[str, Tensor], again: Mapping[str, Tensor]) -> None:
    """Refuse a collator that makes something else of the same rows each time.

    Args:
        batch: What it made of some.
        again: What it made of them again.

    Raises:
        ProbeError: They differ.
    """
    for name, value in batch.items():
        if not torch.equal(value, again[name]):
            raise ProbeError(
                f"the collator makes another {name} of the same examples each time (it masks at "
                "random), and the anchor's outputs are kept for one; mask the examples beforehand "
                "and give a collator that only pads, in a trainer by `probe_collator=`"
            )


def _refuse_hidden_padding(
    rows: Sequence[Mapping[str, Any]], batch: Mapping[str, Tensor], logits: Tensor
) -> None:
    """Refuse decisions at positions of which nobody says whether they are padding."""
    lengths = {len(row["input_ids"]) for row in rows if "input_ids" in row}
    if logits.ndim == 3 and len(lengths) > 1 and "attention_mask" not in batch:
        raise ProbeError(
            "the collator pads inputs of different lengths and gives no attention_mask, so padding "
            "would count as decisions; give one that does, or rows with an attention_mask"
        )
