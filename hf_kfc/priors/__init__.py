"""Priors: anchor, curvature and provenance of a task, as an object and as files."""

from .prior import ConsolidationPrior
from .provenance import Provenance

__all__ = ["ConsolidationPrior", "Provenance"]
