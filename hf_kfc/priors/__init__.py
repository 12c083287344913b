"""Priors: anchor, curvature and provenance of a task, as an object, as files and on the Hub."""

from .prior import ConsolidationPrior
from .provenance import Provenance
from .push import PushedPrior

__all__ = ["ConsolidationPrior", "Provenance", "PushedPrior"]
