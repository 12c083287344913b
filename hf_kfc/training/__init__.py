"""Training with the penalty."""

from .arguments import ConsolidationArguments
from .penalty import ConsolidationPenalty, bayesian_strength
from .trainer import ConsolidationMixin, ConsolidationTrainer

__all__ = [
    "ConsolidationArguments",
    "ConsolidationMixin",
    "ConsolidationPenalty",
    "ConsolidationTrainer",
    "bayesian_strength",
]
