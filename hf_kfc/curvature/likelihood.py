"""What a model's scores are of, and the gradients of an example's log-likelihood at them.

Each family is the one of which the loss of transformers is a mean negative log-likelihood, up to a
constant: cross-entropy of a class, binary cross-entropy of each label, squared error of each
number. F is of the **sum** over an example's decisions, and what the loss is a mean over is
counted for the strength. The estimator and the oracle share this file and the forward pass alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from math import sqrt
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..curvature_arguments import Labels
from ..errors import CurvatureError
from ..precision import wide

__all__ = ["Family", "Outputs", "logit_gradients"]


class Family(Enum):
    """What is decided at a model's scores z; the value is the loss, in words.

    * ``CATEGORICAL``: one class of K by their softmax; the gradient is softmax(z) − onehot(y).
    * ``BERNOULLI``: a binary label at each score; the gradient is σ(z) − y, with y in [0, 1].
    * ``GAUSSIAN``: a number at each score, with variance ½: −log p = (z − y)² + constant is the MSE
      of transformers itself, and not twice as with unit variance; the gradient is 2(z − y).
    """

    CATEGORICAL = "cross-entropy"
    BERNOULLI = "binary cross-entropy"
    GAUSSIAN = "squared error"


class Outputs(NamedTuple):
    """What a forward pass gives to the curvature.

    Args:
        logits: Shape [N, K] (one decision per example) or [N, T, K] (one per position); the
            dtype's minimum where a class is not offered.
        labels: Shape [N] or [N, T], −100 where there is no decision; of Bernoulli and Gaussian
            scores, which have one decision each, numbers in the shape of the logits.
        family: What the logits are scores of.
    """

    logits: Tensor
    labels: Tensor
    family: Family = Family.CATEGORICAL

    @property
    def decided(self) -> Tensor:
        """Where there is a decision, in the labels' shape."""
        if self.family is Family.CATEGORICAL:
            return self.labels != -100
        return torch.ones_like(self.labels, dtype=torch.bool)

    def losses(self) -> Tensor:
        """Return −log p of each example up to a constant, mean over its decisions; shape [N]."""
        logits = wide(self.logits)
        if self.family is Family.CATEGORICAL:
            each = functional.cross_entropy(logits.movedim(-1, 1), self.labels, reduction="none")
        elif self.family is Family.BERNOULLI:
            each = functional.binary_cross_entropy_with_logits(
                logits, self.labels.to(logits), reduction="none"
            )
        else:
            each = (logits - self.labels).square()
        each, decided = (x.reshape(len(logits), -1) for x in (each, self.decided))
        return (each * decided).sum(1) / decided.sum(1).clamp(min=1)


def logit_gradients(
    outputs: Outputs, kind: Labels, keys: Sequence[int], seed: int
) -> Iterator[Tensor]:
    """Yield logit gradients V whose per-example outer products sum to the wanted Fisher.

    For ``exact``, F = Σ_c p_c ∇log p_c ∇log p_cᵀ needs one V per class, scaled by √p_c; decisions
    at different positions are independent, so each position has its own. A Bernoulli or Gaussian
    score has one V, the standard deviation of its gradient: √(p(1 − p)) or √2.

    Args:
        outputs: Of a forward pass.
        kind: The label kind.
        keys: A number per example that is the same in every run, whatever batch it is in.
        seed: Of the sampled labels.

    Yields:
        Tensors shaped like the logits, without gradient.

    Raises:
        CurvatureError: Logits and labels do not fit each other or the examples.
    """
    _refuse_other_labels(outputs, len(keys))
    logits = wide(outputs.logits.detach())
    if outputs.family is Family.CATEGORICAL:
        yield from _of_classes(logits.softmax(-1), outputs, kind, keys, seed)
    else:
        yield from _of_numbers(logits, outputs, kind, keys, seed)


def _refuse_other_labels(outputs: Outputs, examples: int) -> None:
    logits, labels, family = outputs
    one_each = family is not Family.CATEGORICAL
    if (logits.shape if one_each else logits.shape[:-1]) != labels.shape or len(logits) != examples:
        needed = (
            "both [N, K] or [N, T, K]" if one_each else "[N, K] and [N], or [N, T, K] and [N, T]"
        )
        raise CurvatureError(
            f"logits of shape {list(logits.shape)} and labels of shape {list(labels.shape)} are no "
            f"scores of {examples} examples; `forward=` must return {needed}"
        )
    if family is Family.CATEGORICAL:
        wrong = outputs.decided & ((labels < 0) | (labels >= logits.shape[-1]))
        needed = f"out of range for {logits.shape[-1]} classes; use -100 where there is no decision"
    elif family is Family.BERNOULLI:
        wrong = ~((labels >= 0) & (labels <= 1))
        needed = (
            "no probability; a yes or no is 1.0 or 0.0, and of numbers the config's problem_type "
            "is 'regression', or `forward=` returns Family.GAUSSIAN"
        )
    else:
        wrong, needed = ~labels.isfinite(), "no number to predict; leave such examples out"
    if bool(wrong.any()):
        raise CurvatureError(f"label {labels[wrong][0].item()} is {needed}")


def _of_classes(
    probabilities: Tensor, outputs: Outputs, kind: Labels, keys: Sequence[int], seed: int
) -> Iterator[Tensor]:
    if kind is Labels.EXACT:
        yield from _exact(probabilities, outputs.decided)
        return
    labels = outputs.labels.clamp(min=0).long()
    if kind is Labels.SAMPLED:
        labels = _sample(probabilities, keys, seed)
    index = labels[..., None]
    # In place: of a large vocabulary every copy costs as much as a layer.
    probabilities.scatter_(-1, index, probabilities.gather(-1, index) - 1)
    probabilities[~outputs.decided] = 0
    yield probabilities


def _of_numbers(
    logits: Tensor, outputs: Outputs, kind: Labels, keys: Sequence[int], seed: int
) -> Iterator[Tensor]:
    if outputs.family is Family.BERNOULLI:
        mean, slope = logits.sigmoid(), 1.0
        deviation = (mean * (1 - mean)).sqrt()
    else:
        mean, slope = logits, 2.0
        deviation = torch.full_like(logits, sqrt(2))
    if kind is Labels.EMPIRICAL:
        yield slope * (mean - outputs.labels)
    elif kind is Labels.EXACT:
        for index in range(logits.shape[1:].numel()):
            alone = torch.zeros_like(logits)
            alone.view(len(logits), -1)[:, index] = deviation.reshape(len(logits), -1)[:, index]
            yield alone
    elif outputs.family is Family.BERNOULLI:
        yield mean - (_drawn(Random.random, keys, seed, logits) < mean).to(mean)
    else:
        yield deviation * _drawn(Random.gauss, keys, seed, logits)


def _drawn(draw: Callable[[Random], float], keys: Sequence[int], seed: int, like: Tensor) -> Tensor:
    """Draw numbers that depend on seed, key and place alone, in the shape and dtype of another."""
    # Not torch's generator: on a CPU it uses only the lower 32 bits of its seed.
    generators = [Random(f"{seed} {key}") for key in keys]
    places = range(like.shape[1:].numel())
    numbers = torch.tensor([[draw(generator) for _ in places] for generator in generators])
    return numbers.reshape(like.shape).to(like)


def _sample(probabilities: Tensor, keys: Sequence[int], seed: int) -> Tensor:
    """Invert the cumulative distribution at uniforms, one example after the other: it is large."""
    uniforms = _drawn(Random.random, keys, seed, probabilities[..., 0])
    drawn = []
    for own, uniform in zip(probabilities, uniforms, strict=True):
        cumulative = own.cumsum(-1)
        threshold = (uniform * cumulative[..., -1])[..., None]
        drawn.append(torch.searchsorted(cumulative, threshold, right=True)[..., 0])
    return torch.stack(drawn).clamp(max=probabilities.shape[-1] - 1)


def _exact(probabilities: Tensor, decided: Tensor) -> Iterator[Tensor]:
    classes = probabilities.shape[-1]
    scaled = probabilities.sqrt() * decided[..., None]
    for label in range(classes):
        if not bool(scaled[..., label].any()):
            continue
        residual = probabilities.clone()
        residual[..., label] -= 1.0
        residual = residual * scaled[..., label, None]
        if residual.ndim == 2:
            yield residual
            continue
        for position in decided.any(0).nonzero()[:, 0].tolist():
            alone = torch.zeros_like(residual)
            alone[:, position] = residual[:, position]
            yield alone
