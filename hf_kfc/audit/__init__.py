"""What a prior tells of the data it was estimated on, to whoever holds its files."""

from .embeddings import EmbeddingAudit, audit_tokens
from .membership import Separation, membership_auc
from .span import span_auc

__all__ = ["EmbeddingAudit", "Separation", "audit_tokens", "membership_auc", "span_auc"]
