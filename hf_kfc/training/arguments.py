"""``ConsolidationArguments``: the settings of consolidation on top of the Trainer's own."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from transformers import Seq2SeqTrainingArguments

from .config import ConsolidationConfig, PenaltySettings

__all__ = ["ConsolidationArguments"]


@dataclass
class ConsolidationArguments(PenaltySettings, Seq2SeqTrainingArguments):
    """``TrainingArguments`` plus the fields of :class:`ConsolidationConfig`, for one command line.

    They are those of Seq2SeqTrainer too. For other trainers' own, as TRL's, give a
    ConsolidationConfig beside them.

    Args:
        penalty_ignore: ``ignore`` of the ConsolidationConfig; the curvature has an ``ignore`` of
            its own.

    Raises:
        ConsolidationError: A value out of its range.

    Example:
        >>> ConsolidationArguments("runs/new", strengths=0.5).consolidation.damping
        0.1
    """

    penalty_ignore: list[str] | None = field(
        default=None,
        metadata={
            "help": "What the penalty does not hold, as a head of new labels: patterns of "
            "parameter names, module paths, or class names of modules."
        },
    )

    def __post_init__(self) -> None:
        # Those of the TrainingArguments, or of a subclass that stands beside this one.
        super(PenaltySettings, self).__post_init__()  # type: ignore[no-untyped-call]
        self.strengths = self.consolidation.strengths

    @property
    def consolidation(self) -> ConsolidationConfig:
        """The settings as they are now: a hyperparameter search changes them between two runs."""
        shared = {f.name: getattr(self, f.name) for f in fields(PenaltySettings)}
        return ConsolidationConfig(**shared, ignore=self.penalty_ignore)
