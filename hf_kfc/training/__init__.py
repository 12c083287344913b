"""Training with the penalty."""

from .arguments import ConsolidationArguments
from .config import ConsolidationConfig, PenaltySettings
from .penalty import ConsolidationPenalty
from .strengths import bayesian_strength
from .trainer import ConsolidationMixin, ConsolidationTrainer

__all__ = [
    "ConsolidationArguments",
    "ConsolidationConfig",
    "ConsolidationMixin",
    "ConsolidationPenalty",
    "ConsolidationTrainer",
    "PenaltySettings",
    "bayesian_strength",
]
