"""Probes: inputs that anyone may have, on which the anchor's outputs are kept."""

from .forward import unlabelled_forward
from .outputs import Divergences
from .probes import Probes, digest_of
from .provenance import Source

__all__ = ["Divergences", "Probes", "Source", "digest_of", "unlabelled_forward"]
