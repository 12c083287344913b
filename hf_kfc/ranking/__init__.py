"""Candidate ranking: examples, encoding, batches, rankers and metrics.

Importing this package registers the CNN with ``AutoConfig`` and ``AutoModelForMultipleChoice``.
"""

from hf_kfc.ranking.cnn import CnnConfig, CnnForMultipleChoice
from hf_kfc.ranking.collator import CandidateCollator
from hf_kfc.ranking.encoder import load_ranker
from hf_kfc.ranking.encoding import encode_candidates, train_tokenizer
from hf_kfc.ranking.loss import masked_logits, ranking_loss
from hf_kfc.ranking.metrics import (
    Forgetting,
    RankingAccuracy,
    cf_reduction,
    compute_metrics,
    ranking_accuracy,
    relative_change,
)
from hf_kfc.ranking.schema import FEATURES, Concept, Mention

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
