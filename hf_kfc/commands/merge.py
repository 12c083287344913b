"""Merge priors into one, whose penalty costs less than theirs together; tell the error."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..priors import ConsolidationPrior
from ..priors.files import refuse_other_files
from .report import Report
from .written import write_prior

__all__ = ["report"]


def report(options: argparse.Namespace) -> Report:
    """Merge priors and write the result.

    Args:
        options: The parsed command line.

    Raises:
        HfKfcError: A prior is missing or damaged, they have no common sum, or the output folder
            holds something else.
    """
    refuse_other_files(Path(options.output))
    priors = [ConsolidationPrior.from_pretrained(name) for name in options.priors]
    merged = ConsolidationPrior.merge(
        priors, rank=options.rank, weights=options.weights, damping=options.damping
    )
    return write_prior(merged, options.output)
