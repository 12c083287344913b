"""Publish a prior that is there already."""

from __future__ import annotations

import argparse

from ..priors import ConsolidationPrior
from .report import Report

__all__ = ["report"]


def report(options: argparse.Namespace) -> Report:
    """Push a prior to a repository of its own."""
    prior = ConsolidationPrior.from_pretrained(options.prior)
    pushed = prior.push_to_hub(
        options.repository, anchor=options.anchor, min_examples=options.min_examples
    )
    values = {"published": str(pushed), "tag": pushed.tag, "url": pushed.url}
    return Report(values, [f"{options.prior}: published as {pushed}, {pushed.url}"])
