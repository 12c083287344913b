"""What the recipes take on their command lines, beside learning and curvature."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import ConsolidationError

__all__ = ["DataArguments", "LearningArguments", "RankerArguments"]


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


@dataclass
class DataArguments:
    """Where examples come from, and how many."""

    data_dir: str | None = field(
        default=None, metadata={"help": "Folder with the files of the real corpora."}
    )
    train_examples: int = field(
        default=2000, metadata={"help": "Training examples of a task, at most."}
    )
    validation_examples: int = field(
        default=500, metadata={"help": "Examples for choosing strengths, at most."}
    )
    test_examples: int = field(
        default=1000, metadata={"help": "Examples for the reported figures, at most."}
    )

    @property
    def max_examples(self) -> dict[str, int]:
        """The limits by split."""
        return {
            "train": self.train_examples,
            "validation": self.validation_examples,
            "test": self.test_examples,
        }


@dataclass
class LearningArguments:
    """How a tier is trained."""

    epochs: float = field(default=5.0, metadata={"help": "Passes over the training examples."})
    learning_rate: float = field(
        default=1e-3, metadata={"help": "Peak learning rate of AdamW, decaying linearly to 0."}
    )
    batch_size: int = field(
        default=32, metadata={"help": "Examples per process and optimizer step."}
    )
    strengths: list[float] | None = field(
        default=None,
        metadata={
            "help": "Strength λ of the penalty, one for all priors or one for each "
            "(default: the Bayesian value N_old / (2 N_new))."
        },
    )
    damping: float = field(default=0.1, metadata={"help": "Relative damping of the curvature."})
    bf16: bool = field(default=False, metadata={"help": "Train in bfloat16 mixed precision."})
    seed: int = field(default=0, metadata={"help": "Seed of data, weights, order and dropout."})

    def __post_init__(self) -> None:
        for name in ("epochs", "learning_rate", "batch_size"):
            if not getattr(self, name) > 0:
                raise ConsolidationError(f"{name} is {getattr(self, name)}; give a positive number")
