"""BC5CDR: chemicals and diseases in PubMed abstracts, linked to MeSH."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError
from .builder import CandidateRankingBuilder
from .counts import SplitCounts
from .files import read_lines, read_names
from .ontology import concepts_from_names, surface_forms
from .schema import Concept, Mention

__all__ = ["Annotation", "Bc5cdr", "PubtatorDocument", "read_pubtator"]

_TEXT_LINE = re.compile(r"(?P<document>[^|\t]+)\|(?P<part>[ta])\|(?P<text>.*)")
_RELATION_FIELDS = 4


@dataclass(frozen=True, slots=True)
class Annotation:
    """A marked span of a PubTator document.

    Args:
        start: Offset of the span's first character in the document's text.
        end: Offset after its last one.
        text: The span.
        concept: Identifier of its concept; ``"-1"`` for none, ``"A|B"`` for a composite.
    """

    start: int
    end: int
    text: str
    concept: str


@dataclass(slots=True)
class PubtatorDocument:
    """A document in PubTator format.

    Args:
        id: The document's identifier.
        text: The title, a space and the abstract: what offsets count in.
        annotations: The marked spans, in the file's order.
    """

    id: str
    text: str
    annotations: list[Annotation] = field(default_factory=list)


def read_pubtator(path: str | Path) -> Iterator[PubtatorDocument]:
    """Read a file in PubTator format; its relation lines are passed over.

    Args:
        path: The file, gzipped or not.

    Yields:
        The documents, in the file's order.

    Raises:
        DataError: The file is missing, a line is malformed, or a span is not the text at its
            offsets.
    """
    document: PubtatorDocument | None = None
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        header = _TEXT_LINE.fullmatch(line)
        if header and header["part"] == "t":
            if document:
                yield document
            document = PubtatorDocument(header["document"], header["text"])
            continue
        owner = header["document"] if header else line.split("\t")[0]
        if document is None or owner != document.id:
            raise DataError(
                f"{where}: line of document {owner[:80]!r} outside of it; start each document "
                "with its title line 'id|t|title'"
            )
        if header:
            document.text += " " + header["text"]
        elif line.count("\t") + 1 != _RELATION_FIELDS:
            document.annotations.append(_annotation(where, line, document.text))
    if document:
        yield document


def _annotation(where: str, line: str, text: str) -> Annotation:
    fields = line.split("\t")
    # A composite mention has a seventh field with the names of its parts.
    if len(fields) not in (6, 7) or not (fields[1].isdecimal() and fields[2].isdecimal()):
        raise DataError(
            f"{where}: expected 'id, start, end, mention, type, concept' between tabs; correct "
            "or remove the line"
        )
    start, end = int(fields[1]), int(fields[2])
    if text[start:end] != fields[3]:
        raise DataError(
            f"{where}: mention {fields[3]!r} is not the text at {start}:{end}, which is "
            f"{text[start:end]!r}; correct the offsets"
        )
    return Annotation(start, end, fields[3], fields[5])


class Bc5cdr(CandidateRankingBuilder):
    """BioCreative V CDR (Li et al. 2016), with the official splits.

    The ontology is a list of MeSH names, widened by the surface forms of the train documents.
    Mentions with no concept (``-1``) and composite mentions (``A|B``) are dropped and counted.

    ``data_files``: ``train``, ``validation``, ``test`` (PubTator format) and ``names`` (lines
    ``id<TAB>name``).
    """

    FILES = ("train", "validation", "test", "names")

    def _ontology(self) -> Sequence[Concept]:
        names = read_names(self.files["names"])
        for concept, forms in surface_forms(self._mentions("train", SplitCounts())).items():
            if concept in names:
                names[concept] += forms
        return concepts_from_names(names)

    def _mentions(self, split: str, counts: SplitCounts) -> Iterator[Mention]:
        for document in read_pubtator(self.files[split]):
            for span in document.annotations:
                if span.concept == "-1":
                    counts.drop("no concept")
                elif "|" in span.concept:
                    counts.drop("composite mention")
                else:
                    yield Mention(
                        document=document.id,
                        text=span.text,
                        left=document.text[: span.start],
                        right=document.text[span.end :],
                        concept=span.concept,
                        key=f"{span.start}-{span.end}",
                    )
