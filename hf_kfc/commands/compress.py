"""Write a prior in fewer bytes: factors of low rank, half precision; tell the error.

    hf-kfc compress runs/tier1/prior --rank 64 --dtype bfloat16 --output runs/tier1/small
    hf-kfc compress org/tier1-kfc@v1 --dtype bfloat16 --output small

The anchor stays as it is. With --rank a factor keeps its largest eigenpairs and its diagonal.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from ..priors import ConsolidationPrior
from ..priors.files import refuse_other_files
from .report import Report
from .written import write_prior

__all__ = ["add_arguments", "report"]

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("prior", metavar="PRIOR", help="Folder or repository of the prior.")
    parser.add_argument("--output", metavar="DIR", required=True, help="The folder to write.")
    parser.add_argument(
        "--rank", type=int, help="Eigenpairs kept of each Kronecker factor (default: all)."
    )
    parser.add_argument(
        "--dtype", choices=_DTYPES, help="How the curvature is stored (default: as it is)."
    )


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
    dtype = None if options.dtype is None else _DTYPES[options.dtype]
    return write_prior(prior.compress(rank=options.rank, dtype=dtype), options.output)
