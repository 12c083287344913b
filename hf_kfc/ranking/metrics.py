"""Ranking accuracy, and how much of an old task's accuracy a new task costs."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from transformers import EvalPrediction

from ..errors import DataError

__all__ = [
    "cf_reduction",
    "compute_metrics",
    "ranking_accuracy",
    "relative_change",
]

# What Trainer fills in when it joins the logits of batches with unequal numbers of candidates.
_TRAINER_PADDING = -100.0


def ranking_accuracy(predictions: ArrayLike, references: ArrayLike) -> float:
    """Share of the examples whose gold candidate is ranked first.

    Args:
        predictions: Indices of the candidates ranked first ``[examples]``.
        references: Indices of the gold candidates ``[examples]``.

    Returns:
        A number between 0 and 1.

    Raises:
        DataError: There are no examples.
    """
    hits = np.asarray(predictions) == np.asarray(references)
    if hits.size == 0:
        raise DataError("The accuracy of no examples is undefined; evaluate on at least one.")
    return float(hits.mean())


def relative_change(before: ArrayLike, after: ArrayLike) -> float:
    """Relative change of the accuracy on old tasks in percent; forgetting is negative.

    Args:
        before: Accuracies before the new task ``[tasks]`` (or one).
        after: Accuracies on the same tasks after it ``[tasks]`` (or one).

    Returns:
        The mean over the tasks of ``100 · (after − before) / before``.

    Raises:
        DataError: An accuracy before the new task is zero, so that nothing could be forgotten.
    """
    start, end = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if start.size == 0 or (start <= 0).any():
        raise DataError(
            "The relative change needs accuracies above zero before the new task, but got "
            f"{start.tolist()}; leave out tasks that the model had not learnt."
        )
    return float((100 * (end - start) / start).mean())


def cf_reduction(change: float, change_without: float) -> float:
    """Share of catastrophic forgetting that a method prevents.

    Args:
        change: Relative change of the old tasks with the method, in percent.
        change_without: The same with no method.

    Returns:
        ``1 − change / change_without``: 1 where nothing is forgotten, 0 where the method does not
        help, negative where it harms; NaN where nothing is forgotten without it either.
    """
    return 1 - change / change_without if change_without < 0 else math.nan


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Ranking accuracy for ``Trainer(compute_metrics=...)``.

    Args:
        prediction: Logits ``[examples, candidates]``, first if they are a tuple, and labels
            ``[examples]``.

    Returns:
        ``{"accuracy": ...}``.
    """
    outputs = prediction.predictions
    logits = np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs)
    logits = np.where(logits == _TRAINER_PADDING, -np.inf, logits)
    return {"accuracy": ranking_accuracy(logits.argmax(-1), prediction.label_ids)}
