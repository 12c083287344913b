"""Candidate ranking: examples, encoding, batches, rankers and metrics.

Importing this package registers the CNN with ``AutoConfig`` and ``AutoModelForMultipleChoice``.
"""

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
from .schema import FEATURES, Concept, Mention

__all__ = [
    "FEATURES",
    "CandidateCollator",
    "CnnConfig",
    "CnnForMultipleChoice",
    "Concept",
    "Forgetting",
    "Mention",
    "RankingAccuracy",
    "cf_reduction",
    "compute_metrics",
    "encode_candidates",
    "load_ranker",
    "masked_logits",
    "ranking_accuracy",
    "ranking_loss",
    "relative_change",
    "train_tokenizer",
]
