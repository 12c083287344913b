"""Measure linked documents, and what an update changed."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ...commands.report import Report
from ...errors import DataError
from ...files import refuse_blocked, replace_file
from ..formats.documents import Document
from ..formats.files import read_documents, refuse_inputs
from ..ontologies.readers import read_file
from ..scoring import (
    Regressions,
    Scores,
    answers_of_documents,
    concept_counts,
    find_regressions,
    score_answers,
)

__all__ = ["regressions", "score"]


def score(options: argparse.Namespace) -> Report:
    """Measure linked documents.

    Args:
        options: The parsed command line.

    Raises:
        HfKfcError: A file is missing or malformed, or they do not belong together.
    """
    inputs = (options.predictions, options.gold, options.ontology, *options.train)
    _check_page(options.html, inputs)
    ontology = options.ontology and read_file(options.ontology, options.ontology_format)
    answers = answers_of_documents(
        read_documents(options.predictions, options.format),
        read_documents(options.gold, options.format),
        ontology,
    )
    counts: Counter[str] = Counter()
    for path in options.train:
        counts += concept_counts(read_documents(path, options.format), ontology)
    scores = score_answers(
        answers, counts if options.train else None, resamples=options.resamples, seed=options.seed
    )
    return _told(scores, options, f"{options.predictions.name}: scores")


def regressions(options: argparse.Namespace) -> Report:
    """Compare what two linkers say, or said in files, about one gold.

    Args:
        options: The parsed command line.

    Raises:
        HfKfcError: A file or a linker is missing or malformed, or they do not belong together.
    """
    _check_page(options.html, (options.old, options.new, options.gold, options.ontology))
    gold = list(read_documents(options.gold, options.format))
    ontology = options.ontology and read_file(options.ontology, options.ontology_format)
    old, new = (
        answers_of_documents(_said(name, gold, options), gold, ontology)
        for name in (options.old, options.new)
    )
    found = find_regressions(old, new, resamples=options.resamples, seed=options.seed)
    return _told(found, options, f"{options.old} to {options.new}: what changed")


def _said(name: str, gold: list[Document], options: argparse.Namespace) -> list[Document]:
    """Read what a linker wrote, or ask it."""
    if Path(name).is_file() or any(Path(name).glob("*.ann")):
        return list(read_documents(name, options.format))
    from .linking import linked_documents, load_linker  # noqa: PLC0415 - loads models' code

    return list(linked_documents(load_linker(name, options), gold, options))


def _check_page(path: Path | None, inputs: Iterable[str | Path | None]) -> None:
    """Make sure that a page can be written, before the work that it tells of."""
    if path is None:
        return
    if path.is_dir():
        raise DataError(f"{path} is a folder; give the name of a file")
    refuse_blocked(path.parent)
    refuse_inputs(path, inputs)


def _told(found: Scores | Regressions, options: argparse.Namespace, title: str) -> Report:
    """Write the page, if one is asked for, and tell the rest."""
    report = found.report()
    if options.html is None:
        return report
    options.html.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(options.html) as partial:
        partial.write_text(found.html(title), encoding="utf-8")
    return Report(report.values, [*report.parts, f"page written to {options.html}"])
