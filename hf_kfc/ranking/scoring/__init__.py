"""How good a linker is, and what an update changed: from files of linked text or from scores."""

from .answers import Answer, Answers, answers_of_documents, answers_of_scores, concept_counts
from .bootstrap import Estimate
from .regressions import Regressions, find_regressions, regressions_of_trainers
from .scores import Scores, score_answers

__all__ = [
    "Answer",
    "Answers",
    "Estimate",
    "Regressions",
    "Scores",
    "answers_of_documents",
    "answers_of_scores",
    "concept_counts",
    "find_regressions",
    "regressions_of_trainers",
    "score_answers",
]
