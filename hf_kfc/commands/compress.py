"""Write a prior in fewer bytes: factors of low rank, half precision; tell the error."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..priors import ConsolidationPrior
from ..priors.files import refuse_other_files
from .report import Report
from .written import write_prior

__all__ = ["report"]


def report(options: argparse.Namespace) -> Report:
    """Compress a prior and write the result.

    Args:
        options: The parsed command line.

    Raises:
        HfKfcError: The prior is missing or damaged, has no such form, or the output folder holds
            something else.
    """
    refuse_other_files(Path(options.output))
    prior = ConsolidationPrior.from_pretrained(options.prior, revision=options.revision)
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    return write_prior(prior.compress(rank=options.rank, dtype=dtype), options.output)
