"""What a prior tells of the data it was estimated on, to whoever holds its files."""

from .embeddings import EmbeddingAudit, audit_tokens
from .frequencies import Frequencies, frequencies_told
from .membership import Separation, membership_auc
from .span import difference_auc, span_auc

__all__ = [
    "EmbeddingAudit",
    "Frequencies",
    "Separation",
    "audit_tokens",
    "difference_auc",
    "frequencies_told",
    "membership_auc",
    "span_auc",
]
