"""What a model decides on inputs without labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..curvature import Family, Outputs
from ..curvature.objective import attended, named
from ..errors import ProbeError

__all__ = ["right_padded", "unlabelled_forward"]


def unlabelled_forward(model: nn.Module, batch: Mapping[str, Tensor]) -> Outputs:
    """Run a Hugging Face model on inputs alone, and say what it decides.

    * Scores [N, K] are one decision of each example: classes, or as ``problem_type`` of the config
      says several binary labels, or numbers, which a single score is too.
    * Scores [N, T, K] are one of each attended position: the class of a token, the token itself, or
      the next one. In an encoder-decoder the positions are the decoder's.
    * Where an answer starts and ends are two decisions over the attended positions.

    Args:
        model: Called with the batch.
        batch: Tensors by name, without labels.

    Returns:
        Logits, and labels of 0 where there is a decision and −100 elsewhere.

    Raises:
        ProbeError: The model gives no such scores.
    """
    output = named(model(**batch))
    logits = getattr(output, "logits", None)
    ends = [getattr(output, name, None) for name in ("start_logits", "end_logits")]
    if all(isinstance(scores, Tensor) for scores in ends):
        logits = _answers(ends, _attended(batch, ""))  # type: ignore[arg-type]
        return Outputs(logits, torch.zeros_like(logits[..., 0], dtype=torch.long))
    if not isinstance(logits, Tensor) or logits.ndim not in (2, 3):
        given = "no `logits`"
        if isinstance(logits, Tensor):
            given = f"logits of shape {list(logits.shape)}"
        raise ProbeError(
            f"{type(model).__name__} gave {given}; probes need [N, K] or [N, T, K], so give "
            "`forward=` a function that returns them"
        )
    family = _family(getattr(model, "config", None), logits)
    if family is not Family.CATEGORICAL:
        return Outputs(logits, torch.zeros_like(logits), family)
    labels = torch.zeros_like(logits[..., 0], dtype=torch.long)
    mask = _attended(batch, "decoder_" if "decoder_input_ids" in batch else "")
    if mask is not None and mask.shape == labels.shape:
        labels = labels.masked_fill(~mask, -100)
    return Outputs(logits, labels)


def right_padded(batch: dict[str, Any]) -> dict[str, Any]:
    """Move padding from the left to the right, where no position's number depends on it.

    Args:
        batch: Tensors by name; with an ``attention_mask`` [N, T], all of its shape are moved.
    """
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return batch
    seen = attended(mask, None)
    if bool(seen[:, 0].all()):
        return batch
    start = seen.int().argmax(1, keepdim=True)
    length = mask.shape[1]
    order = (torch.arange(length, device=mask.device) + start) % length
    return {
        name: value.gather(1, order)
        if isinstance(value, Tensor) and value.shape == mask.shape
        else value
        for name, value in batch.items()
    }


def _attended(batch: Mapping[str, Tensor], prefix: str) -> Tensor | None:
    mask = batch.get(f"{prefix}attention_mask")
    return None if mask is None else attended(mask, batch.get(f"{prefix}input_ids"))


def _answers(ends: list[Tensor], mask: Tensor | None) -> Tensor:
    logits = torch.stack(ends, dim=1)  # [N, 2, T]
    if mask is None or mask.shape != ends[0].shape:
        return logits
    return logits.masked_fill(~mask[:, None], torch.finfo(logits.dtype).min)


def _family(config: Any, logits: Tensor) -> Family:
    if logits.ndim == 3:
        return Family.CATEGORICAL
    problem = getattr(config, "problem_type", None)
    if problem == "multi_label_classification":
        return Family.BERNOULLI
    if problem == "regression" or logits.shape[1] == 1:
        return Family.GAUSSIAN
    return Family.CATEGORICAL
