"""Link the mentions marked in documents to the concepts of an ontology."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ...commands.report import Report, Table
from ...errors import DataError
from ..candidates import span_mention
from ..concepts import surface_forms
from ..corpora.consistency import is_half_a_word, warn_of_halves
from ..formats.documents import Document, Span
from ..formats.files import check_place, read_documents, refuse_inputs, write_documents
from ..linker import EntityLinker, LinkedMention, with_answers

__all__ = ["link", "linked_documents", "load_linker"]

_TOGETHER = 2_000  # documents; they and all candidates are held in memory
_NAMED = 5


def link(options: argparse.Namespace) -> Report:
    """Link documents and write them.

    Args:
        options: The parsed command line.

    Raises:
        HfKfcError: The documents, the linker or the ontology is missing or malformed, or the
            output's format cannot hold something; nothing is written then.
    """
    documents = read_documents(options.notes, options.format)
    inputs = (options.ontology, *options.names_from, *options.development)
    refuse_inputs(options.output, inputs)
    check_place(options.output, options.output_format)
    _refuse_known(options)
    linker = load_linker(options.model, options)
    counts: Counter[str] = Counter()
    without: list[str] = []

    def counted(documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            linked = sum(bool(span.concepts) for span in document.spans)
            mentions = [span_mention(document, span, "") for span in document.spans]
            halves = sum(map(is_half_a_word, mentions))
            counts.update(documents=1, mentions=len(mentions), linked=linked, halves=halves)
            counts.update(document.remarks)
            without.extend([] if document.spans else [document.id])
            yield document

    linked = linked_documents(linker, documents, options)
    write_documents(counted(linked), options.output, options.output_format)
    warn_of_halves(str(options.notes), counts.pop("halves", 0), counts["mentions"])
    named = ("documents", "mentions", "linked")
    values: dict[str, Any] = {
        "output": str(options.output),
        **{name: counts.pop(name, 0) for name in named},
        "documents_without_mentions": without,
        "passed_over": dict(counts),
    }
    values["no_concept"] = values["mentions"] - values["linked"]
    rows = [(name, f"{values[name]:,}") for name in (*named, "no_concept")]
    parts: list[Table | str] = [Table(rows), f"written to {options.output}"]
    if without:
        some = ", ".join(without[:_NAMED]) + (", ..." if len(without) > _NAMED else "")
        parts.append(f"{len(without):,} documents have no marked mention: {some}")
    parts += [f"{remark}: {count:,}" for remark, count in counts.items()]
    return Report(values, parts)


def _refuse_known(options: argparse.Namespace) -> None:
    """Refuse to link notes in place, as one may, where they say already what mentions mean."""
    output: Path = options.output
    if not (output.exists() and output.samefile(options.notes)):
        return
    documents = read_documents(options.notes, options.format)
    if any(span.concepts for document in documents for span in document.spans):
        raise DataError(
            f"{output} has concepts of its mentions already, which would be lost; give --output "
            "another file"
        )


def load_linker(name: str, options: argparse.Namespace) -> EntityLinker:
    """Load a linker, or a ranker with the ontology of the options.

    Args:
        name: Its folder or repository.
        options: The parsed command line.

    Raises:
        HfKfcError: It, or the ontology, is missing or damaged.
    """
    settings = {} if options.retrieval is None else {"retrieval": options.retrieval}
    linker = EntityLinker.from_pretrained(
        name,
        ontology=options.ontology,
        ontology_format=options.ontology_format,
        device=options.device,
        dtype=options.dtype,
        **settings,
    )
    named = _documents(options.names_from, options)
    linker.add_concepts(surface_forms(m for m in with_answers(named) if m.concept))
    if options.development:
        known = _documents(options.development, options)
        linker.calibrate(known, batch_size=options.batch_size, num_proc=options.num_proc)
    return linker


def _documents(paths: Iterable[Path], options: argparse.Namespace) -> Iterator[Document]:
    return chain.from_iterable(read_documents(path, options.format) for path in paths)


def linked_documents(
    linker: EntityLinker, documents: Iterable[Document], options: argparse.Namespace
) -> Iterator[Document]:
    """Link documents, many at a time.

    Args:
        linker: The linker.
        documents: The documents; concepts that their mentions have are replaced.
        options: The parsed command line.

    Yields:
        The documents, each mention with its concept, if any, and all candidates.
    """
    remaining = iter(documents)
    while some := list(islice(remaining, _TOGETHER)):
        found = linker(some, batch_size=options.batch_size, num_proc=options.num_proc)
        for document, mentions in zip(some, found, strict=True):
            pairs = zip(document.spans, mentions, strict=True)
            yield replace(document, spans=[_linked(span, said) for span, said in pairs])


def _linked(span: Span, said: LinkedMention) -> Span:
    return replace(
        span,
        concepts=() if said.concept is None else (said.concept,),
        names=() if said.name is None else (said.name,),
        probability=said.probability,
        candidates=said.candidates,
    )
