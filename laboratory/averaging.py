"""Averages of models that were trained one after the other: of their parameters or scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_kfc.precision import wide
from hf_kfc.ranking.loss import masked_logits, ranking_loss

__all__ = ["ScoreAverage", "average_parameters"]


def average_parameters(before: nn.Module, newest: nn.Module, share: float) -> dict[str, Tensor]:
    """Return (1 − w) θ + w θ', as a state dict of one model.

    Weight averaging: of a model before and after fine-tuning WiSE-FT (Wortsman et al. 2022a); with
    w = 1/k, of the k-th model and the average of those before it, a model soup (Wortsman et al.
    2022b). It costs one model to keep and to run, and supposes that the models started from each
    other or from one pretrained model.

    Args:
        before: The model with the parameters θ.
        newest: One of the same architecture, with θ'.
        share: w.

    Returns:
        Averages, summed in float64, of the parameters and buffers of a floating type; the others
        (counters, positions) are the newest model's. Types and devices are its own too.
    """
    others, averages = before.state_dict(), {}
    for name, last in newest.state_dict().items():
        if last.is_floating_point():
            old, new = (own.to("cpu", torch.float64) for own in (others[name], last))
            averages[name] = ((1 - share) * old + share * new).to(last)
        else:
            averages[name] = last.clone()
    return averages


class ScoreAverage(nn.Module):
    """Models whose probabilities are averaged: p(c) = Σ_k softmax(logits_k)(c) / K.

    An ensemble (bagging, Breiman 1996; deep ensembles, Lakshminarayanan et al. 2017), here of the
    models of each period. It is run like one model, in evaluation; it costs as much as all.

    Args:
        models: Models with the same outputs, the newest last.
    """

    takes_candidate_mask = True
    """Tells :class:`~hf_kfc.ranking.trainer.RankingTrainer` not to keep the mask to itself."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

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
        logits = torch.logsumexp(torch.stack(scores) - math.log(len(scores)), 0)
        if candidate_mask is not None:
            logits = masked_logits(logits, candidate_mask)
        loss = None if labels is None else ranking_loss(logits, labels)
        return type(output)(**{**output, "loss": loss, "logits": logits})


def _log_probabilities(logits: Tensor, candidate_mask: Tensor | None) -> Tensor:
    logits = wide(logits)
    if candidate_mask is not None:
        logits = masked_logits(logits, candidate_mask)
    return functional.log_softmax(logits, -1)
