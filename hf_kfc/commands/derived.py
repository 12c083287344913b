"""What is made of priors: others, which only approximate them, and files for other libraries."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import PriorError
from ..priors import ConsolidationPrior
from ..priors.files import refuse_other_files
from ..priors.provenance import summarise_errors
from .report import Report, Table, megabytes

__all__ = ["compress", "export", "merge"]

_COLUMNS = ("name", "operator", "error")


def merge(options: argparse.Namespace) -> Report:
    """Merge priors and write the result."""
    _refuse_output(options.output, options.priors)
    priors = [ConsolidationPrior.from_pretrained(name) for name in options.priors]
    merged = ConsolidationPrior.merge(
        priors, rank=options.rank, weights=options.weights, damping=options.damping
    )
    left_out = {prior.task: len(prior.probes) for prior in priors if prior.probes is not None}
    return _written(merged, options.output, left_out)


def compress(options: argparse.Namespace) -> Report:
    """Compress a prior and write the result."""
    _refuse_output(options.output, [options.prior])
    prior = ConsolidationPrior.from_pretrained(options.prior)
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    return _written(prior.compress(rank=options.rank, dtype=dtype), options.output)


def export(options: argparse.Namespace) -> Report:
    """Write the second moments of inputs for another library."""
    prior = ConsolidationPrior.from_pretrained(options.prior)
    count = prior.export_covariances(options.output)
    size = options.output.stat().st_size
    values = {"output": str(options.output), "layers": count, "bytes": size}
    return Report(values, [f"{options.output}: inputs of {count} layers, {megabytes(size)} MB"])


def _refuse_output(output: Path, given: Sequence[str]) -> None:
    """Make sure that nothing is lost: neither other files, nor what the output is made of."""
    refuse_other_files(output)
    if output.exists() and any(Path(n).exists() and output.samefile(n) for n in given):
        raise PriorError(f"{output} is the prior that is read; give --output another folder")


def _written(
    prior: ConsolidationPrior, output: Path, left_out: Mapping[str, int] | None = None
) -> Report:
    """Write a prior, and report its errors, its size, and whose probes it has not."""
    prior.save_pretrained(output)
    errors = prior.provenance.approximation_errors
    size = sum(path.stat().st_size for path in output.iterdir())
    layers = [(b.name, b.operator.kind, errors[b.name]) for b in prior.curvature.blocks]
    values: dict[str, Any] = {
        "output": str(output),
        "fingerprint": prior.fingerprint,
        "provenance": prior.provenance.to_dict(),
        "bytes": size,
        "probes_left_out": dict(left_out or {}),
        "layers": [dict(zip(_COLUMNS, layer, strict=True)) for layer in layers],
    }
    rows = [_COLUMNS, *((name, kind, f"{error:.2%}") for name, kind, error in layers)]
    summary = f"{output}: task '{prior.task}', {megabytes(size)} MB, error of the curvature: "
    return Report(values, [Table(rows, left=2), summary + summarise_errors(errors)])
