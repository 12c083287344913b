"""Probes: inputs that anyone may have, on which the anchor's outputs are kept."""

from .content import Source, digest_of
from .forward import unlabelled_forward
from .inputs import pad_tokens
from .outputs import Divergences
from .probes import Probes
from .tokens import TokenTable

__all__ = [
    "Divergences",
    "Probes",
    "Source",
    "TokenTable",
    "digest_of",
    "pad_tokens",
    "unlabelled_forward",
]
