"""What curvature needs to know of candidate lists of uneven length."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..curvature import CurvatureArguments, Outputs, default_forward, default_position_mask
from ..priors import ConsolidationPrior
from ..probes import unlabelled_forward
from .loss import masked_logits

__all__ = ["estimate_prior", "ranking_forward", "ranking_position_mask"]


def ranking_forward(model: nn.Module, batch: Mapping[str, Tensor]) -> Outputs:
    """Run a ranker, with padded candidates taken out of the softmax.

    Args:
        model: Called with the batch less ``candidate_mask`` and ``labels``.
        batch: Of :class:`~hf_kfc.ranking.CandidateCollator`; without ``candidate_mask`` every
            candidate counts.

    Returns:
        Scores [batch, candidates] and labels [batch]; of a batch without labels, as of probes,
        those of :func:`~hf_kfc.probes.unlabelled_forward`.

    Raises:
        CurvatureError: The outputs and labels are of no task that is known.
    """
    inputs = dict(batch)
    candidate_mask = inputs.pop("candidate_mask", None)
    read = default_forward if "labels" in inputs else unlabelled_forward
    outputs = read(model, inputs)
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


def estimate_prior(
    model: nn.Module,
    examples: Any,
    collator: Callable[[list[Any]], Mapping[str, Tensor]],
    args: CurvatureArguments | None = None,
    *,
    task: str,
    accuracy: float | None = None,
    checkpoint_dir: str | Path | None = None,
) -> ConsolidationPrior:
    """Make the prior of a ranker that has just learnt a task, by ``ConsolidationPrior.estimate``.

    Args:
        model: The ranker.
        examples: The task's encoded training examples.
        collator: A :class:`~hf_kfc.ranking.CandidateCollator`.
        args: How the curvature is estimated.
        task: Name of the task.
        accuracy: The ranker's accuracy on the task, which later tiers compare theirs with.
        checkpoint_dir: Where the progress is kept, from which an estimate that was killed goes on.

    Raises:
        CurvatureError: The model or the examples are such that no curvature can be estimated.

    Example:
        >>> prior = estimate_prior(model, train, collator, task="psytar")  # doctest: +SKIP
    """
    return ConsolidationPrior.estimate(
        model,
        examples,
        collator,
        args,
        task=task,
        anchor_metrics={} if accuracy is None else {"accuracy": accuracy},
        forward=ranking_forward,
        position_mask=ranking_position_mask,
        checkpoint_dir=checkpoint_dir,
    )
