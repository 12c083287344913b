"""Writing the prior that a command has made, and telling how near it is to what it was made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..priors import ConsolidationPrior
from ..priors.provenance import summarise_errors
from .report import Report, Table, megabytes

__all__ = ["write_prior"]

_COLUMNS = ("name", "operator", "error")


def write_prior(prior: ConsolidationPrior, output: str) -> Report:
    """Write a prior that only approximates others, and report its errors and its size.

    Args:
        prior: With its errors in the provenance.
        output: The folder.

    Raises:
        PriorError: The folder holds something else.
    """
    prior.save_pretrained(output)
    errors = prior.provenance.approximation_errors
    size = sum(path.stat().st_size for path in Path(output).iterdir())
    layers = [(b.name, b.operator.kind, errors[b.name]) for b in prior.curvature.blocks]
    values: dict[str, Any] = {
        "output": output,
        "fingerprint": prior.fingerprint,
        "provenance": prior.provenance.to_dict(),
        "bytes": size,
        "layers": [dict(zip(_COLUMNS, layer, strict=True)) for layer in layers],
    }
    rows = [_COLUMNS, *((name, kind, f"{error:.2%}") for name, kind, error in layers)]
    summary = f"{output}: task '{prior.task}', {megabytes(size)} MB, error of the curvature: "
    return Report(values, [Table(rows, left=2), summary + summarise_errors(errors)])
