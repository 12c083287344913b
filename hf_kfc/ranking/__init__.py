"""Candidate ranking: examples, encoding, batches, rankers and metrics.

Importing this package registers the CNN with ``AutoConfig`` and ``AutoModelForMultipleChoice``, and
both the CNN and ranking examples with the command line.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import extra as extra  # first: it says what is not installed
from . import plugin as plugin
from .cnn import CnnConfig, CnnForMultipleChoice
from .collator import CandidateCollator
from .comparison import (
    METHODS,
    Comparison,
    Outcome,
    Remembered,
    is_finished,
    method_name,
    require_matplotlib,
)
from .encoding import encode_candidates, train_tokenizer
from .loading import (
    DataArguments,
    OldDataArguments,
    dataset_name,
    encode_splits,
    find_sources,
    load_examples,
    load_pretrained,
    new_cnn,
)
from .loss import masked_logits, ranking_loss
from .metrics import (
    cf_reduction,
    compute_metrics,
    ranking_accuracy,
    relative_change,
)
from .objective import estimate_prior, ranking_forward, ranking_position_mask
from .probes import (
    Candidates,
    ProbeArguments,
    candidates_of,
    contexts_of,
    ontology_examples,
    probes_from_ontology,
)
from .push_tier import PushArguments, model_card, push_tier
from .schema import FEATURES, Concept, Mention
from .scoring import (
    Answer,
    Answers,
    Regressions,
    Scores,
    answers_of_documents,
    answers_of_scores,
    concept_counts,
    find_regressions,
    regressions_of_trainers,
    score_answers,
)
from .scripts import LearningArguments, ScriptParser, check_processes
from .trainer import RankingConsolidationTrainer, RankingTrainer

if TYPE_CHECKING:
    from .evaluation import Forgetting, RankingAccuracy
    from .linker import EntityLinker, LinkedMention, record_settings

__all__ = [
    "FEATURES",
    "METHODS",
    "Answer",
    "Answers",
    "CandidateCollator",
    "Candidates",
    "CnnConfig",
    "CnnForMultipleChoice",
    "Comparison",
    "Concept",
    "DataArguments",
    "EntityLinker",
    "Forgetting",
    "LearningArguments",
    "LinkedMention",
    "Mention",
    "OldDataArguments",
    "Outcome",
    "ProbeArguments",
    "PushArguments",
    "RankingAccuracy",
    "RankingConsolidationTrainer",
    "RankingTrainer",
    "Regressions",
    "Remembered",
    "Scores",
    "ScriptParser",
    "answers_of_documents",
    "answers_of_scores",
    "candidates_of",
    "cf_reduction",
    "check_processes",
    "compute_metrics",
    "concept_counts",
    "contexts_of",
    "dataset_name",
    "encode_candidates",
    "encode_splits",
    "estimate_prior",
    "find_regressions",
    "find_sources",
    "is_finished",
    "load_examples",
    "load_pretrained",
    "masked_logits",
    "method_name",
    "model_card",
    "new_cnn",
    "ontology_examples",
    "probes_from_ontology",
    "push_tier",
    "ranking_accuracy",
    "ranking_forward",
    "ranking_loss",
    "ranking_position_mask",
    "record_settings",
    "regressions_of_trainers",
    "relative_change",
    "require_matplotlib",
    "score_answers",
    "train_tokenizer",
]


_LATER = {  # slow to import, and not needed by all
    "EntityLinker": "linker",
    "Forgetting": "evaluation",
    "LinkedMention": "linker",
    "RankingAccuracy": "evaluation",
    "record_settings": "linker",
}


def __getattr__(name: str) -> Any:
    """Import what is slow to import when it is asked for."""
    if name in _LATER:
        return getattr(import_module(f".{_LATER[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
