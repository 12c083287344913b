"""What every experiment takes on its command line, beside points and curvature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from typing import Any

from hf_kfc.errors import ConsolidationError
from hf_kfc.training.config import PENALTY_DTYPES

__all__ = [
    "DataArguments",
    "LearningArguments",
    "RankerArguments",
    "refuse_set",
    "settings_of",
]


@dataclass
class RankerArguments:
    """Which model ranks the candidates."""

    ranker: str = field(
        default="cnn",
        metadata={"help": "'cnn', or the folder or Hub name of an encoder or of a saved ranker."},
    )
    hidden_size: int = field(default=128, metadata={"help": "Width of a new CNN."})
    vocab_size: int = field(
        default=8000, metadata={"help": "Vocabulary of a new CNN, learnt from the first task."}
    )
    num_layers: int | None = field(
        default=None, metadata={"help": "Keep only the first layers of an encoder (default: all)."}
    )
    max_length: int = field(
        default=96, metadata={"help": "The most tokens of text and candidate name together."}
    )

    def __post_init__(self) -> None:
        for name in ("hidden_size", "vocab_size"):
            if getattr(self, name) < 1:
                raise ConsolidationError(f"{name} is {getattr(self, name)}; give at least 1")
        if self.ranker == "cnn" and self.num_layers is not None:
            raise ConsolidationError("num_layers is of an encoder given as --ranker; leave it out")


@dataclass
class DataArguments:
    """Where examples come from, and how many."""

    data_dir: str | None = field(
        default=None, metadata={"help": "Folder with the files of the real corpora."}
    )
    train_examples: int = field(
        default=1500, metadata={"help": "Training examples of a task, at most."}
    )
    validation_examples: int = field(
        default=500, metadata={"help": "Examples for choosing strengths, at most."}
    )
    test_examples: int = field(
        default=1000, metadata={"help": "Examples for the reported figures, at most."}
    )

    num_candidates: int | None = field(
        default=None,
        metadata={"help": "Candidates of an example (default: the task's own number)."},
    )

    @property
    def config(self) -> dict[str, Any]:
        """What these say of a task's :class:`RankingConfig`."""
        limits = {
            "train": self.train_examples,
            "validation": self.validation_examples,
            "test": self.test_examples,
        }
        candidates = {} if self.num_candidates is None else {"num_candidates": self.num_candidates}
        return {"max_examples": limits, **candidates}


@dataclass
class LearningArguments:
    """How a tier is trained."""

    epochs: float = field(default=5.0, metadata={"help": "Passes over the training examples."})
    learning_rate: float = field(
        default=3e-3, metadata={"help": "Peak learning rate of AdamW, decaying linearly to 0."}
    )
    batch_size: int = field(
        default=32, metadata={"help": "Examples per process and optimizer step."}
    )
    strengths: list[float] | None = field(
        default=None,
        metadata={
            "help": "Strength λ of the penalty, one for all priors or one for each "
            "(default: the Bayesian value N_old / (2 N_new); where tier 1 is done on the spot, 1 "
            "or 10 times that, chosen on the development splits)."
        },
    )
    damping: float = field(default=0.1, metadata={"help": "Relative damping of the curvature."})
    penalty_every: int = field(
        default=1,
        metadata={"help": "Have the penalty in every k-th step only, at k times its strength."},
    )
    penalty_dtype: str = field(
        default="float32",
        metadata={
            "help": "Dtype of the penalty's products: 'float32', or 'bfloat16', which is faster.",
            "choices": list(PENALTY_DTYPES),
        },
    )
    bf16: bool = field(default=False, metadata={"help": "Train in bfloat16 mixed precision."})
    seed: int = field(default=0, metadata={"help": "Seed of data, weights, order and dropout."})

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate", "batch_size"):
            value = getattr(self, name)
            if not (isfinite(value) and value > 0):
                raise ConsolidationError(f"{name} is {value}; give a positive number")
        for name, values in (("strengths", self.strengths or []), ("damping", [self.damping])):
            for value in values:
                if not (isfinite(value) and value >= 0):
                    raise ConsolidationError(f"{name}: {value} is not a number ≥ 0; correct it")
        if self.penalty_every < 1:
            raise ConsolidationError(f"penalty_every is {self.penalty_every}; give at least 1")
        if self.penalty_dtype not in PENALTY_DTYPES:
            raise ConsolidationError(
                f"penalty_dtype is {self.penalty_dtype}; give one of {', '.join(PENALTY_DTYPES)}"
            )
        if not 0 <= self.seed < 2**32:
            raise ConsolidationError(f"seed is {self.seed}; give a number from 0 to {2**32 - 1}")


def refuse_set(learning: LearningArguments, names: Sequence[str], instead: str) -> None:
    """Make sure that arguments which an experiment sets itself are left alone.

    Args:
        learning: How to train.
        names: Of those arguments.
        instead: What to give in their place, for the message.

    Raises:
        ConsolidationError: One is not at its default.
    """
    for name in names:
        if getattr(learning, name) != getattr(LearningArguments(), name):
            raise ConsolidationError(f"the experiment sets {name} itself; use {instead}")


_ADDED_LATER = {
    ("CurvatureArguments", "fallback"),
    ("CurvatureArguments", "min_token_examples"),
    ("CurvatureArguments", "products"),
    ("CurvatureArguments", "unknown_token_id"),
    ("LearningArguments", "penalty_every"),
    ("LearningArguments", "penalty_dtype"),
}
"""Fields younger than results that are still gone on from: at their default, they are not named."""


def settings_of(*arguments: Any) -> dict[str, Any]:
    """Return arguments by the names of their classes, as JSON values."""
    return {
        type(own).__name__: {
            item.name: asdict(own)[item.name]
            for item in fields(own)
            if (type(own).__name__, item.name) not in _ADDED_LATER
            or getattr(own, item.name) != item.default
        }
        for own in arguments
    }
