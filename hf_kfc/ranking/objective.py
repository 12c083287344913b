"""What curvature needs to know of candidate lists of uneven length."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..curvature.objective import Outputs, default_forward, default_position_mask
from .loss import masked_logits

__all__ = ["ranking_forward", "ranking_position_mask"]


def ranking_forward(model: nn.Module, batch: Mapping[str, Tensor]) -> Outputs:
    """Run a ranker, with padded candidates taken out of the softmax.

    Args:
        model: Called with the batch less ``candidate_mask`` and ``labels``.
        batch: Of :class:`~hf_kfc.ranking.CandidateCollator`; without ``candidate_mask`` every
            candidate counts.

    Returns:
        Scores [batch, candidates] and labels [batch].

    Raises:
        CurvatureError: See :func:`~hf_kfc.curvature.default_forward`.
    """
    inputs = dict(batch)
    candidate_mask = inputs.pop("candidate_mask", None)
    outputs = default_forward(model, inputs)
    if candidate_mask is None:
        return outputs
    return outputs._replace(logits=masked_logits(outputs.logits, candidate_mask.bool()))


def ranking_position_mask(batch: Mapping[str, Tensor]) -> Tensor:
    """Say which positions of a batch count: the attended tokens of the offered candidates.

    Args:
        batch: Tensors by name: ``attention_mask`` [batch, candidates, positions] and
            ``candidate_mask`` [batch, candidates] are used where they are.

    Returns:
        Boolean tensor [batch], [batch, candidates] or [batch, candidates, positions].
    """
    if "candidate_mask" not in batch:
        return default_position_mask(batch)
    offered = batch["candidate_mask"].bool()
    if "attention_mask" not in batch:
        return offered
    return batch["attention_mask"].bool() & offered[..., None]
