"""The metrics as `evaluate` has them; a file of their own, since that library is slow to import."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
import evaluate

from .metrics import cf_reduction, ranking_accuracy, relative_change

__all__ = ["Forgetting", "RankingAccuracy"]


class RankingAccuracy(evaluate.Metric):  # type: ignore[misc]
    """Share of the examples whose gold candidate is ranked first.

    Example:
        >>> RankingAccuracy().compute(predictions=[0, 2], references=[0, 1])
        {'accuracy': 0.5}
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of the examples whose gold candidate is ranked first.",
            citation="",
            inputs_description="Indices of the candidates ranked first and of the gold ones.",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"accuracy": ranking_accuracy(predictions, references)}


class Forgetting(evaluate.Metric):  # type: ignore[misc]
    """Relative change of the accuracy on old tasks, and the CF reduction of a method.

    ``compute(before=..., after=...)`` takes accuracies, one for each old task, and gives
    ``relative_change`` in percent (forgetting is negative). Given ``after_without`` too, the
    accuracies after training with no method, it adds ``cf_reduction``, a share of 1.

    Example:
        >>> Forgetting().compute(before=[0.8], after=[0.7], after_without=[0.6])
        {'relative_change': -12.5, 'cf_reduction': 0.5}
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Relative change of the accuracy on old tasks in percent.",
            citation="",
            inputs_description="Accuracies on the old tasks before and after the new task.",
            features=datasets.Features(
                {"before": datasets.Value("float64"), "after": datasets.Value("float64")}
            ),
        )

    def _compute(
        self,
        before: Sequence[float],
        after: Sequence[float],
        after_without: Sequence[float] | None = None,
    ) -> dict[str, float]:
        change = relative_change(before, after)
        result = {"relative_change": change}
        if after_without is not None:
            result["cf_reduction"] = cf_reduction(change, relative_change(before, after_without))
        return result
