"""Training with the penalty, and rivals to it."""

from .arguments import ConsolidationArguments
from .averaging import ScoreAverage, average_parameters
from .layerwise import layer_depths
from .penalty import ConsolidationPenalty, bayesian_strength
from .rehearsal import RehearsalSampler, keep_part
from .trainer import ConsolidationMixin, ConsolidationTrainer

__all__ = [
    "ConsolidationArguments",
    "ConsolidationMixin",
    "ConsolidationPenalty",
    "ConsolidationTrainer",
    "RehearsalSampler",
    "ScoreAverage",
    "average_parameters",
    "bayesian_strength",
    "keep_part",
    "layer_depths",
]
