"""PubTator format: a title, an abstract and the spans marked in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..problems import Problems
from .lines import read_lines

__all__ = ["Annotation", "PubtatorDocument", "read_pubtator"]

_TEXT_LINE = re.compile(r"(?P<document>[^|\t]+)\|(?P<part>[ta])\|(?P<text>.*)")
_OFFSET = re.compile(r"[0-9]{1,9}")
_RELATION = re.compile(r"[^\W\d_].*")
_SHOWN = 80  # characters of a malformed record in a message


@dataclass(frozen=True, slots=True)
class Annotation:
    """A marked span of a PubTator document.

    Args:
        start: Offset of the span's first character in the document's text.
        end: Offset after its last one.
        text: The span.
        types: Its semantic types; MedMentions writes several with commas between them.
        concept: Its concept as the file writes it: ``"-1"`` or empty for none, ``"A|B"`` for a
            composite.
        where: File and line, ``"path:number"``.
    """

    start: int
    end: int
    text: str
    types: tuple[str, ...]
    concept: str
    where: str = ""


@dataclass(slots=True)
class PubtatorDocument:
    """A document in PubTator format.

    Args:
        id: The document's identifier.
        title: Its title.
        abstract: Its abstract, if it has the line of one.
        annotations: The marked spans, in the file's order.
        relations: The kind of each relation line, for example ``"CID"``; no more is read of it.
    """

    id: str
    title: str
    abstract: str | None = None
    annotations: list[Annotation] = field(default_factory=list)
    relations: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What offsets count in: the title, a space and the abstract."""
        return self.title if self.abstract is None else f"{self.title} {self.abstract}"


def read_pubtator(path: str | Path, problems: Problems | None = None) -> Iterator[PubtatorDocument]:
    """Read a file in PubTator format.

    A document is its title line, perhaps an abstract line, and the lines of annotations and
    relations; blank lines between documents are optional. An annotation has 5 to 7 fields: the
    sixth is the concept, the seventh, the names of a composite's parts, is not read. A line whose
    second field is a word is a relation: its kind is kept.

    Args:
        path: The file, gzipped or not.
        problems: Told of malformed lines; by default they raise. Where a title line is left out,
            each line that follows for its document is malformed too, and is left out.

    Yields:
        The documents, in the file's order, each identifier once.

    Raises:
        DataError: The file is missing, or ``problems`` raises.
    """
    problems = problems or Problems()
    document: PubtatorDocument | None = None
    seen: set[str] = set()
    for number, line in read_lines(path, problems):
        where = f"{path}:{number}"
        header = _TEXT_LINE.fullmatch(line)
        if header and header["part"] == "t":
            if document:
                yield document
            document, id_ = None, header["document"]
            if id_ in seen:
                message = f"document {id_[:_SHOWN]!r} comes twice; remove the repeated one"
                problems("document comes twice", where, message)
                continue
            seen.add(id_)
            document = PubtatorDocument(id_, header["text"])
        elif line.strip():
            owner = header["document"] if header else line.split("\t")[0]
            if document is None or owner != document.id:
                message = (
                    f"line of document {owner[:_SHOWN]!r} outside of it; start each document with "
                    "its title line 'id|t|title'"
                )
                problems("line outside of its document", where, message)
            elif header:
                _add_abstract(document, header["text"], where, problems)
            else:
                _add_fields(document, line.split("\t"), where, problems)
    if document:
        yield document


def _add_abstract(
    document: PubtatorDocument, abstract: str, where: str, problems: Problems
) -> None:
    if document.abstract is not None or document.annotations or document.relations:
        message = (
            f"abstract of document {document.id[:_SHOWN]!r} is not right after its title; put it "
            "there, once"
        )
        problems("abstract not right after its title", where, message)
    else:
        document.abstract = abstract


def _add_fields(
    document: PubtatorDocument, fields: Sequence[str], where: str, problems: Problems
) -> None:
    """Add a line of fields to its document: an annotation or a relation."""
    if len(fields) in (4, 5) and _RELATION.fullmatch(fields[1]):
        document.relations.append(fields[1])
        return
    if len(fields) not in (5, 6, 7) or not all(map(_OFFSET.fullmatch, fields[1:3])):
        line = "\t".join(fields)
        message = (
            "expected 'id, start, end, mention, type, concept' between tabs, got "
            f"{line[:_SHOWN]!r}; correct or remove the line"
        )
        problems("line is not an annotation", where, message)
        return
    start, end, mention, text = int(fields[1]), int(fields[2]), fields[3], document.text
    if end <= start:
        message = f"span {start}:{end} does not end after its start; correct the offsets"
        problems("span does not end after its start", where, message)
    elif end > len(text):
        message = (
            f"span {start}:{end} is outside of the text, which has {len(text)} characters; "
            "correct the offsets"
        )
        problems("span outside of the text", where, message)
    elif text[start:end] != mention:
        message = (
            f"mention {mention[:_SHOWN]!r} is not the text at {start}:{end}, which is "
            f"{text[start:end][:_SHOWN]!r}; correct the offsets, which count characters"
        )
        problems("mention is not the text at its offsets", where, message)
    else:
        types = tuple(name for part in fields[4].split(",") if (name := part.strip()))
        concept = fields[5].strip() if len(fields) > 5 else ""
        document.annotations.append(Annotation(start, end, mention, types, concept, where))
