"""Averages of models that were trained one after the other: of their parameters or scores."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_kfc.errors import ConsolidationError
from hf_kfc.precision import wide
from hf_kfc.ranking.loss import masked_logits, ranking_loss

__all__ = ["ScoreAverage", "average_parameters"]


def average_parameters(
    models: Sequence[nn.Module], weights: Sequence[float] | None = None
) -> dict[str, Tensor]:
    """Return θ̄ = Σ_k w_k θ_k, with Σ_k w_k = 1, as a state dict of one model.

    Weight averaging: of a model before and after fine-tuning WiSE-FT (Wortsman et al. 2022a), of
    several fine-tuned ones a model soup (Wortsman et al. 2022b). It costs one model to keep and to
    run, and supposes that the models started from each other or from one pretrained model.

    Args:
        models: Models of one architecture, the newest last.
        weights: w_k ≥ 0 of each, scaled here so that they sum to one; none means equal weights.

    Returns:
        Averages, summed in float64, of the parameters and buffers of a floating type; the others
        (counters, positions) are the last model's. Types and devices are the last model's too.

    Raises:
        ConsolidationError: The models' tensors differ in name or shape, or the weights are wrong.
    """
    shares = _shares(models, weights)
    states = [model.state_dict() for model in models]
    _refuse_differences(states)
    averages = {}
    for name, last in states[-1].items():
        if last.is_floating_point():
            total = sum(
                share * state[name].to("cpu", torch.float64)
                for share, state in zip(shares, states, strict=True)
            )
            averages[name] = torch.as_tensor(total).to(last.device, last.dtype)
        else:
            averages[name] = last.clone()
    return averages


class ScoreAverage(nn.Module):
    """Models whose probabilities are averaged: p(c) = Σ_k w_k softmax(logits_k)(c).

    An ensemble (bagging, Breiman 1996; deep ensembles, Lakshminarayanan et al. 2017), here of the
    models of each period. It is run like one model, in evaluation; it costs as much as all.

    Args:
        models: Models with the same outputs, the newest last.
        weights: w_k ≥ 0 of each, scaled here so that they sum to one; none means equal weights.

    Raises:
        ConsolidationError: There are no models, or the weights are wrong.
    """

    takes_candidate_mask = True
    """Tells :class:`~hf_kfc.ranking.trainer.RankingTrainer` not to keep the mask to itself."""

    log_weights: Tensor

    def __init__(self, models: Sequence[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        shares = torch.tensor(_shares(models, weights))
        self.models = nn.ModuleList(models)
        self.register_buffer("log_weights", shares.log(), persistent=False)

    # The usual inputs have names here: the Trainer removes columns that it finds no name of.
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        candidate_mask: Tensor | None = None,
        **features: Any,
    ) -> Any:
        """Run every model on the batch.

        Args:
            input_ids: Handed on to every model.
            attention_mask: Handed on to every model.
            token_type_ids: Handed on to every model.
            labels: Indices of the right classes or candidates ``[batch]``.
            candidate_mask: True at real candidates ``[batch, candidates]``. What a model gives to
                padded ones must be taken out before its softmax: how much that is differs from
                model to model, and so would the weights of the models in the mean.
            features: Handed on to every model.

        Returns:
            The last model's output whose ``logits`` are the log of the mean probabilities, float32
            or wider, and whose ``loss``, if labels are given, is their mean cross entropy.
        """
        usual = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
        }
        features |= {name: value for name, value in usual.items() if value is not None}
        scores = []
        for model in self.models:
            output = model(**features)
            scores.append(_log_probabilities(output["logits"], candidate_mask))
        weights = self.log_weights.to(scores[-1]).view(-1, *[1] * scores[-1].dim())
        logits = torch.logsumexp(torch.stack(scores) + weights, 0)
        if candidate_mask is not None:
            logits = masked_logits(logits, candidate_mask)
        loss = None if labels is None else ranking_loss(logits, labels)
        return type(output)(**{**output, "loss": loss, "logits": logits})


def _log_probabilities(logits: Tensor, candidate_mask: Tensor | None) -> Tensor:
    logits = wide(logits)
    if candidate_mask is not None:
        logits = masked_logits(logits, candidate_mask)
    return functional.log_softmax(logits, -1)


def _shares(models: Sequence[nn.Module], weights: Sequence[float] | None) -> list[float]:
    """The weights, scaled to sum to one."""
    given = [1.0] * len(models) if weights is None else list(weights)
    if not models or len(given) != len(models):
        raise ConsolidationError(
            f"{len(given)} weights were given for {len(models)} models to be averaged; give at "
            "least one model and one weight for each"
        )
    if not all(isfinite(weight) and weight >= 0 for weight in given) or not sum(given):
        raise ConsolidationError(
            f"the weights {given} of models to be averaged are not numbers ≥ 0 with one above 0; "
            "correct them"
        )
    return [weight / sum(given) for weight in given]


def _refuse_differences(states: Sequence[dict[str, Tensor]]) -> None:
    shapes = [{name: list(tensor.shape) for name, tensor in state.items()} for state in states]
    different = [
        f"{name} ({', '.join(str(found.get(name, 'missing')) for found in shapes)})"
        for name in dict.fromkeys(name for found in shapes for name in found)
        if any(found.get(name) != shapes[-1].get(name) for found in shapes)
    ]
    if different:
        raise ConsolidationError(
            f"models to be averaged differ in {', '.join(different)}; average models of one "
            "architecture"
        )
