"""How far a linker's probabilities can be believed, and below which it should say nothing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...errors import DataError

__all__ = ["Calibration", "Floats", "calibrated", "calibration_error"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_BINS = 15
_TEMPERATURES = (0.02, 50.0)
_ROUNDING = 1e-5  # what another batch makes of a probability


@dataclass(frozen=True)
class Calibration:
    """What was measured on development mentions, and chosen by it.

    Figures of the threshold are of the mentions that it was chosen on, and so are a little too
    good: report those of a test set.

    Args:
        num_mentions: How many there were.
        num_nil: How many of them have no concept in the ontology.
        retrieval_weight: How much retrieval's score counts from now on.
        temperature: What scores are divided by from now on.
        accuracy_before: Share of the mentions with a concept whose best candidate is right by the
            ranker's scores alone.
        accuracy: The same from now on, whatever the probability.
        error_before: Calibration error (:func:`calibration_error`) of a plain softmax over the
            ranker's scores.
        error_after: The same from now on.
        nil_threshold: The least probability with which a concept is given from now on.
        precision: Share of the concepts given that are right.
        recall: Share of the mentions with a concept that are given the right one.
        f1: Harmonic mean of the two.
        nil_precision: Share of the mentions given no concept that have none.
        nil_recall: Share of the mentions without a concept that are given none.
    """

    num_mentions: int
    num_nil: int
    retrieval_weight: float
    temperature: float
    accuracy_before: float
    accuracy: float
    error_before: float
    error_after: float
    nil_threshold: float
    precision: float
    recall: float
    f1: float
    nil_precision: float
    nil_recall: float


def calibration_error(probabilities: npt.ArrayLike, right: npt.ArrayLike) -> float:
    """Expected calibration error (Guo et al. 2017), over 15 bins of equal width.

    Args:
        probabilities: Of each answer [N] that it is right.
        right: Whether it is [N].

    Returns:
        The mean, over the answers, of the distance between the mean probability and the share of
        right ones in their bin; 0 is perfect.

    Raises:
        DataError: There are no answers.
    """
    p, hits = np.asarray(probabilities, float), np.asarray(right, float)
    if not p.size:
        raise DataError("the calibration of no answers is undefined; give at least one")
    bins = np.minimum((p * _BINS).astype(int), _BINS - 1)
    gaps = np.bincount(bins, p - hits, minlength=_BINS)  # sum of p minus number of right ones
    return float(np.abs(gaps).sum() / p.size)


def calibrated(
    logits: Floats, similarity: Floats, right: Bools, linkable: Bools, least_precision: float | None
) -> Calibration:
    """Choose weight, temperature and threshold, and measure.

    Args:
        logits: The ranker's scores [N, K]; -inf where a mention has fewer candidates.
        similarity: Retrieval's scores [N, K], above 0 where it found the candidate.
        right: Which candidate is the right one [N, K].
        linkable: Whether the mention has a concept in the ontology [N].
        least_precision: The precision to reach with as many concepts given as possible; None: the
            highest F1.

    Raises:
        DataError: Retrieval found no right one, or no threshold reaches the precision.
    """
    found = similarity > 0
    right = right & found
    has_gold = right.any(axis=1)
    if not has_gold.any():
        raise DataError(
            f"retrieval found the concept of none of {len(right)} development mentions; check the "
            "ontology's names"
        )
    gold = right[has_gold].argmax(axis=1)
    weight = best_weight(logits[has_gold], similarity[has_gold], gold)
    asked = found.any(axis=1)  # of the others nothing is said
    measured = []
    for scores in (logits, logits + weight * similarity):
        best = np.where(found, scores, -np.inf).argmax(axis=1)
        measured.append((scores[asked], best[asked], right[np.arange(len(best)), best]))
    before, after = measured
    temperature = best_temperature(*after[:2], after[2][asked])
    p_before = best_probabilities(*before[:2], 1.0)
    p_after = best_probabilities(*after[:2], temperature)
    probabilities, hits = np.zeros(len(right)), after[2]
    probabilities[asked] = p_after
    threshold = best_threshold(probabilities, hits, linkable, least_precision)
    given = probabilities >= threshold
    precision, recall = _share(hits & given, given), _share(hits & given, linkable)
    return Calibration(
        num_mentions=len(right),
        num_nil=int((~linkable).sum()),
        retrieval_weight=weight,
        temperature=temperature,
        accuracy_before=_share(before[2], linkable),
        accuracy=_share(hits, linkable),
        error_before=calibration_error(p_before, before[2][asked]),
        error_after=calibration_error(p_after, hits[asked]),
        nil_threshold=threshold,
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if precision + recall else 0.0,
        nil_precision=_share(~given & ~linkable, ~given),
        nil_recall=_share(~given & ~linkable, ~linkable),
    )


def _share(chosen: Bools, of: Bools) -> float:
    return float(chosen.sum() / of.sum()) if of.any() else 0.0


def best_weight(logits: Floats, similarity: Floats, gold: npt.NDArray[np.intp]) -> float:
    """Find how much retrieval's score should count beside the ranker's.

    Minimises the cross entropy of the gold candidates under a softmax of a · logits + b ·
    similarity, which is convex, over positive a and b.

    Args:
        logits: The ranker's scores [N, K]; -inf where a mention has fewer candidates.
        similarity: Retrieval's scores [N, K].
        gold: Index of the gold candidate [N].

    Returns:
        b / a.
    """
    from scipy.optimize import minimize  # noqa: PLC0415 - slow, and few calibrate
    from scipy.special import logsumexp, softmax  # noqa: PLC0415

    rows = np.arange(len(gold))
    absent = np.isneginf(logits)
    parts = np.stack([np.where(absent, 0.0, logits), np.where(absent, 0.0, similarity)])
    parts -= parts[:, rows, gold][..., None]  # [2, N, K]: the gold's own are 0

    def loss(weights: Floats) -> tuple[float, Floats]:
        scores = np.where(absent, -np.inf, np.tensordot(weights, parts, 1))
        gradient = (parts * softmax(scores, axis=1)).sum(axis=2).mean(axis=1)
        return float(logsumexp(scores, axis=1).mean()), gradient

    found = minimize(loss, [1.0, 0.0], jac=True, bounds=[(1e-4, None), (0.0, None)])
    return float(found.x[1] / found.x[0])


def best_temperature(logits: Floats, best: npt.NDArray[np.intp], right: Bools) -> float:
    """Find the temperature with which the best candidate's probability predicts that it is right.

    Minimises the log loss of these probabilities. Mentions that retrieval missed, or that have no
    concept, count as wrong answers: a softmax over candidates alone would know nothing of them.

    Args:
        logits: Scores [N, K]; -inf where a mention has fewer candidates.
        best: Index of each mention's best candidate [N].
        right: Whether it is the right one [N].
    """
    from scipy.optimize import minimize_scalar  # noqa: PLC0415 - slow, and few calibrate

    def loss(log_temperature: float) -> float:
        p = best_probabilities(logits, best, float(np.exp(log_temperature)))
        p = np.clip(p, 1e-9, 1 - 1e-9)
        return float(-np.where(right, np.log(p), np.log1p(-p)).mean())

    found = minimize_scalar(loss, bounds=tuple(np.log(_TEMPERATURES)), method="bounded")
    return float(np.exp(found.x))


def best_probabilities(logits: Floats, best: npt.NDArray[np.intp], temperature: float) -> Floats:
    """Return softmax(logits / temperature) [N] of the best candidates."""
    from scipy.special import softmax  # noqa: PLC0415

    found: Floats = softmax(logits / temperature, axis=1)[np.arange(len(best)), best]
    return found


def best_threshold(
    probabilities: Floats, right: Bools, linkable: Bools, least_precision: float | None
) -> float:
    """Choose the probability from which on a concept is given.

    Args:
        probabilities: Of the best candidates [N]; 0 where there is none.
        right: Whether it is the right one [N].
        linkable: Whether the mention has a concept in the ontology [N].
        least_precision: The precision to reach with as many concepts given as possible; none: the
            highest F1.

    Returns:
        One of the probabilities, less what rounding makes of it, and above the next lower one.

    Raises:
        DataError: No threshold reaches the precision.
    """
    order = np.argsort(-probabilities, kind="stable")
    p, hits = probabilities[order], np.cumsum(right[order])
    given = np.arange(1, len(p) + 1)
    # A threshold takes all that are as probable: only where the next is less can it stand.
    gaps = p - np.append(p[1:], 0.0)
    stands, thresholds = gaps > 0, p - np.minimum(_ROUNDING, gaps / 2)
    if not stands.any():
        raise DataError("retrieval found no concept for any development mention; check the names")
    precision, recall = hits / given, hits / max(1, int(linkable.sum()))
    if least_precision is None:
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        return float(thresholds[np.argmax(np.where(stands, f1, -1.0))])
    reaching = np.flatnonzero(stands & (precision >= least_precision))
    if not len(reaching):
        highest = precision[stands].max()
        raise DataError(
            f"no threshold reaches a precision of {least_precision} on the development mentions "
            f"(the highest is {highest:.3f}); ask for less"
        )
    return float(thresholds[reaching[-1]])
