"""Candidate ranking: examples, encoding, batches, rankers and metrics.

Importing this package registers the CNN with ``AutoConfig`` and ``AutoModelForMultipleChoice``, and
both the CNN and ranking examples with the command line.
"""

from . import extra as extra  # first: it says what is not installed
from . import plugin as plugin
from .cnn import CnnConfig, CnnForMultipleChoice
from .collator import CandidateCollator
from .encoder import load_ranker
from .encoding import encode_candidates, train_tokenizer
from .loss import masked_logits, ranking_loss
from .metrics import (
    Forgetting,
    RankingAccuracy,
    cf_reduction,
    compute_metrics,
    ranking_accuracy,
    relative_change,
)
from .objective import ranking_forward, ranking_position_mask
from .schema import FEATURES, Concept, Mention
from .trainer import RankingConsolidationTrainer, RankingTrainer

__all__ = [
    "FEATURES",
    "CandidateCollator",
    "CnnConfig",
    "CnnForMultipleChoice",
    "Concept",
    "Forgetting",
    "Mention",
    "RankingAccuracy",
    "RankingConsolidationTrainer",
    "RankingTrainer",
    "cf_reduction",
    "compute_metrics",
    "encode_candidates",
    "load_ranker",
    "masked_logits",
    "ranking_accuracy",
    "ranking_forward",
    "ranking_loss",
    "ranking_position_mask",
    "relative_change",
    "train_tokenizer",
]
