"""Priors: anchor, curvature and provenance of a task, as an object, as files and on the Hub."""

from .prior import ConsolidationPrior
from .provenance import Provenance
from .publication import PublishedPrior
from .snapshot import PriorSource

__all__ = ["ConsolidationPrior", "PriorSource", "Provenance", "PublishedPrior"]
