"""Accuracy, recall, reciprocal ranks, calibration and confusions, with intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...commands.report import Report, Table
from ...errors import DataError
from ..metrics import ranking_accuracy
from .answers import Answer, Answers
from .bootstrap import Bootstrap, Estimate
from .page import page

__all__ = ["Confusion", "Scores", "score_answers"]

_BINS = 15
_DEPTHS = (1, 5, 10, 20, 50)
_SHOWN = 20


class Confusion(NamedTuple):
    """A concept that was taken for another one; an empty identifier is no concept.

    Args:
        gold: The right concept.
        gold_name: What it is called.
        predicted: The one that it was taken for.
        predicted_name: What that is called.
        times: How often.
    """

    gold: str
    gold_name: str
    predicted: str
    predicted_name: str
    times: int


@dataclass(frozen=True)
class Scores:
    """How good a linker is.

    Args:
        documents: How many documents it was asked about.
        mentions: How many mentions.
        overall: ``accuracy`` (of mentions that have a concept, the share with the right one),
            ``mrr`` (the mean of 1 / the place of the right one among the candidates),
            ``recall@k`` (the share whose first k candidates have it; the last k is all of them:
            the recall of retrieval), ``nil_precision`` and ``nil_recall`` (of having no concept)
            and ``calibration_error`` (of the probability of the first candidate, over bins).
        by_type: Accuracy by type.
        by_frequency: Accuracy by how often the concept is in the training data.
        bins: Mean probability, share that is right, and number of mentions of each bin.
        confusions: Which concept was taken for which, the most frequent first.
        notes: What was left out, by reason.
    """

    documents: int
    mentions: int
    overall: dict[str, Estimate]
    by_type: dict[str, Estimate]
    by_frequency: dict[str, Estimate]
    bins: list[tuple[float, float, int]]
    confusions: list[Confusion]
    notes: dict[str, int]

    def report(self) -> Report:
        """Tell it as a table and as JSON values."""
        values = asdict(self)
        for name in ("overall", "by_type", "by_frequency"):
            values[name] = {key: own._asdict() for key, own in getattr(self, name).items()}
        values["confusions"] = [own._asdict() for own in self.confusions]
        parts: list[Table | str] = [f"{self.mentions:,} mentions in {self.documents:,} documents"]
        parts += [f"{note}: {count:,}" for note, count in self.notes.items()]
        for title, own in [
            ("", self.overall),
            ("accuracy by type", self.by_type),
            ("accuracy by mentions in training", self.by_frequency),
        ]:
            heading = (title, "", "95 % interval", "of")
            rows = [(key, str(e), e.interval, f"{e.mentions:,}") for key, e in own.items()]
            parts += [Table([heading, *rows])] if rows else []
        confused = [
            (own[0] or "no concept", own[1], own[2] or "no concept", own[3], f"{own.times:,}")
            for own in self.confusions[:_SHOWN]
        ]
        names = ("right", "", "taken for", "", "times")
        parts += [Table([names, *confused], left=4)] if confused else []
        return Report(values, parts)

    def html(self, title: str = "Scores of a linker") -> str:
        """Tell it as one page, which needs no other file.

        Args:
            title: Its heading.
        """
        return page("scores", title=title, scores=self)


def score_answers(
    answers: Answers,
    counts: Mapping[str, int] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Scores:
    """Measure how good a linker is.

    Intervals are percentiles of a bootstrap that draws documents, as mentions of one document are
    not independent; that of the calibration error, which every resample makes larger, is mirrored
    at the estimate (the basic bootstrap).

    Args:
        answers: What it said (see :func:`answers_of_documents`, :func:`answers_of_scores`).
        counts: Mentions of each concept in training (see :func:`concept_counts`).
        resamples: Resamples of the bootstrap.
        seed: Of its random numbers.

    Raises:
        DataError: No mention has a concept.
    """
    rows = answers.rows
    asked = [row for row in rows if row.gold]
    if not asked:
        raise DataError("no mention of the gold has one concept; give the right answers as GOLD")
    # The trainer's own measure.
    accuracy = ranking_accuracy([row.predicted or "" for row in asked], [row.gold for row in asked])
    draw = Bootstrap([row.document for row in rows], resamples, seed)
    linked, right, none = np.array(
        [(row.gold != "", row.correct, row.predicted == "") for row in rows]
    ).T
    overall = {"accuracy": (right & linked, linked)}
    if depth := max(len(row.candidates) for row in rows):
        place = np.array([_place(row.gold, row.candidates) for row in rows])
        overall["mrr"] = (linked / (1 + place), linked)
        ks = [*(k for k in _DEPTHS if k < depth), depth]
        overall |= {f"recall@{k}": ((place < k) & linked, linked) for k in ks}
    if none.any() or not linked.all():
        overall["nil_precision"] = (none & ~linked, none)
        overall["nil_recall"] = (none & ~linked, ~linked)
    found = draw.shares(overall)
    found["accuracy"] = found["accuracy"]._replace(value=accuracy)
    error, bins = _calibration(rows, draw)
    types = Counter(name for row in asked for name in dict.fromkeys(row.types))
    groups = {
        name: np.array([name in row.types for row in rows]) for name, _ in types.most_common()
    }
    seen = np.array([(counts or {}).get(row.gold, 0) for row in rows])
    often = {"unseen": seen == 0, "seen": seen > 0, "1 to 9": (seen > 0) & (seen < 10)}
    often = {} if counts is None else often | {"10 or more": seen > 9}
    wrong = Counter(
        (row.gold, row.predicted) for row in rows if row.predicted not in (None, row.gold)
    )
    name = answers.names.get
    return Scores(
        len({row.document for row in rows}),
        len(rows),
        found | error,
        draw.shares({key: (right & linked & of, linked & of) for key, of in groups.items()}),
        draw.shares({key: (right & linked & of, linked & of) for key, of in often.items()}),
        bins,
        [
            Confusion(gold, name(gold, ""), predicted or "", name(predicted or "", ""), count)
            for (gold, predicted), count in wrong.most_common()
        ],
        answers.notes,
    )


def _place(gold: str, candidates: Sequence[str]) -> float:
    return candidates.index(gold) if gold in candidates else math.inf


def _calibration(
    rows: Sequence[Answer], draw: Bootstrap
) -> tuple[dict[str, Estimate], list[tuple[float, float, int]]]:
    """Measure how far probabilities are from the shares that are right, bin by bin."""
    known = np.array([row.probability is not None for row in rows])
    if not known.any():
        return {}, []
    chance = np.array([row.probability or 0.0 for row in rows])
    best = [row.candidates[0] if row.candidates else row.predicted for row in rows]
    right = np.array([own == row.gold for own, row in zip(best, rows, strict=True)])
    bins = np.minimum((chance * _BINS).astype(int), _BINS - 1)
    member = (bins[:, None] == np.arange(_BINS)) & known[:, None]  # [mentions, bins]
    columns = np.concatenate([member, member * right[:, None], member * chance[:, None]], 1)
    sums, drawn = (own.reshape(*own.shape[:-1], 3, _BINS) for own in draw.sums(columns))

    def error(sums: NDArray[Any]) -> NDArray[Any]:
        gaps = np.abs(sums[..., 1, :] - sums[..., 2, :]).sum(-1)
        return np.asarray(gaps / sums[..., 0, :].sum(-1).clip(min=1))

    value = float(error(sums))
    low, high = 2 * value - np.quantile(error(drawn), [0.975, 0.025])
    found = Estimate(value, max(float(low), 0.0), max(float(high), 0.0), int(known.sum()))
    shown = [(float(p / n), float(r / n), int(n)) for n, r, p in sums.T if n]
    return {"calibration_error": found}, shown
