"""The ranking loss over uneven candidate lists."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["masked_logits", "ranking_loss"]


def masked_logits(logits: Tensor, candidate_mask: Tensor) -> Tensor:
    """Give padded candidates a probability, and a gradient, of exactly zero.

    The fill value is the type's smallest number and not minus infinity, with which the term
    ``p · log p`` of an entropy or of an expected loss would be NaN.

    Args:
        logits: Scores ``[batch, candidates]``.
        candidate_mask: True at real candidates ``[batch, candidates]``.

    Returns:
        Scores ``[batch, candidates]``.
    """
    return logits.masked_fill(~candidate_mask, torch.finfo(logits.dtype).min)


def ranking_loss(logits: Tensor, labels: Tensor, candidate_mask: Tensor | None = None) -> Tensor:
    """Mean over the examples of the cross entropy of the gold candidate.

    Args:
        logits: Scores ``[batch, candidates]``, of any floating type; the loss is float32 or wider.
        labels: Indices of the gold candidates ``[batch]``.
        candidate_mask: True at real candidates ``[batch, candidates]``; none means all are.

    Returns:
        A scalar.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    if candidate_mask is not None:
        logits = masked_logits(logits, candidate_mask)
    return functional.cross_entropy(logits, labels)
