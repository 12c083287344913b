"""Merge priors into one, whose penalty costs less than theirs together; tell the error.

    hf-kfc merge runs/tier1/prior runs/tier2/prior --rank 1 --output runs/merged
    hf-kfc merge org/a-kfc org/b-kfc@v1 runs/c/prior --weights 1 1 2 --output merged

Every layer keeps the nearest sum of --rank Kronecker products; up to that many priors it is exact.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..priors import ConsolidationPrior
from ..priors.files import refuse_other_files
from .report import Report
from .spectra import DAMPING
from .written import write_prior

__all__ = ["add_arguments", "report"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument(
        "priors", metavar="PRIOR", nargs="+", help="Folders or repositories of the priors."
    )
    parser.add_argument("--output", metavar="DIR", required=True, help="The folder to write.")
    parser.add_argument(
        "--rank", type=int, default=4, help="The most products a layer keeps (default: 4)."
    )
    parser.add_argument(
        "--weights",
        type=float,
        nargs="+",
        metavar="W",
        help="One for each prior (default: its share of the training examples).",
    )
    parser.add_argument(
        "--damping",
        type=float,
        default=DAMPING,
        help=f"The damping that the prior will be used with (default: {DAMPING}).",
    )


def report(options: argparse.Namespace) -> Report:
    """Merge priors and write the result.

    Args:
        options: The parsed command line.

    Raises:
        HfKfcError: A prior is missing or damaged, they have no common sum, or the output folder
            holds something else.
    """
    refuse_other_files(Path(options.output))
    priors = [
        ConsolidationPrior.from_pretrained(name, revision=options.revision)
        for name in options.priors
    ]
    merged = ConsolidationPrior.merge(
        priors, rank=options.rank, weights=options.weights, damping=options.damping
    )
    return write_prior(merged, options.output)
