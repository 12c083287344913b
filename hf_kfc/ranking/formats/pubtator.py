"""PubTator format: a title, an abstract and the spans marked in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..problems import Problems
from .documents import Document, Span, cannot_write, pieces_text, span_text
from .lines import read_lines

__all__ = ["pubtator_text", "read_pubtator"]

_TEXT_LINE = re.compile(r"(?P<document>[^|\t]+)\|(?P<part>[ta])\|(?P<text>.*)")
_OFFSET = re.compile(r"[0-9]{1,9}")
_RELATION = re.compile(r"[^\W\d_].*")
_SEPARATOR = re.compile(r"[|,;+]")  # of the parts of a composite mention
_SHOWN = 80  # characters of a malformed record in a message


def read_pubtator(path: str | Path, problems: Problems | None = None) -> Iterator[Document]:
    """Read a file in PubTator format.

    A document is its title line, perhaps an abstract line, and the lines of annotations and
    relations; blank lines between documents are optional. Its text is the title, a space and the
    abstract. An annotation has 5 to 7 fields: the fifth holds its types, with commas between them,
    the sixth its concept, or the parts of a composite with one of ``| , ; +`` between them; the
    seventh, the names of a composite's parts, is not read. A line whose second field is a word is a
    relation: its kind is a remark on the document.

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
    document: Document | None = None
    only_title = False
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
            document, only_title = Document(id_, header["text"]), True
        elif line.strip():
            owner = header["document"] if header else line.split("\t")[0]
            if document is None or owner != document.id:
                message = (
                    f"line of document {owner[:_SHOWN]!r} outside of it; start each document with "
                    "its title line 'id|t|title'"
                )
                problems("line outside of its document", where, message)
            elif header and only_title and not document.spans and not document.remarks:
                document.title, only_title = len(document.text), False
                document.text = f"{document.text} {header['text']}"
            elif header:
                message = f"abstract of document {owner[:_SHOWN]!r} is not right after its title"
                problems("abstract not right after its title", where, f"{message}; put it there")
            else:
                _add_fields(document, line.split("\t"), where, problems)
    if document:
        yield document


def _add_fields(document: Document, fields: Sequence[str], where: str, problems: Problems) -> None:
    """Add a line of fields to its document: an annotation or a relation."""
    if len(fields) in (4, 5) and _RELATION.fullmatch(fields[1]):
        document.remarks.append(f"{fields[1]} relation passed over")
        return
    if len(fields) not in (5, 6, 7) or not all(map(_OFFSET.fullmatch, fields[1:3])):
        line = "\t".join(fields)
        message = (
            "expected 'id, start, end, mention, type, concept' between tabs, got "
            f"{line[:_SHOWN]!r}; correct or remove the line"
        )
        problems("line is not an annotation", where, message)
        return
    pieces = ((int(fields[1]), int(fields[2])),)
    text = span_text(document.text, pieces, where, problems, fields[3])
    if text is not None:
        types = tuple(name for part in fields[4].split(",") if (name := part.strip()))
        concept = fields[5].strip() if len(fields) > 5 else ""
        ids = tuple(map(str.strip, _SEPARATOR.split(concept))) if concept else ()
        document.spans.append(Span(pieces, text, ids, where, types=types))


def pubtator_text(document: Document) -> str:
    """Write a document in PubTator format, so that :func:`read_pubtator` reads the same.

    Where its title ends is known of documents that were read in this format; the text of another
    one is all title. Names, notes, keys and candidates have no place in the format.

    Args:
        document: The document; its spans in one piece each.

    Returns:
        Its lines and an empty one.

    Raises:
        DataError: A span is in several pieces, or something holds what parts fields or lines.
    """

    def fields(span: Span) -> str:
        if len(span.pieces) != 1:
            raise cannot_write(document, "PubTator", "a span is in several pieces")
        for name, separator in [(i, _SEPARATOR) for i in span.concepts] + [
            (name, re.compile(",")) for name in span.types
        ]:
            if name != name.strip() or not name or separator.search(name) or "\t" in name:
                raise cannot_write(document, "PubTator", f"{name[:_SHOWN]!r} holds a separator")
        ((start, end),) = span.pieces
        text = pieces_text(document.text, span.pieces).replace("\t", " ")
        types, ids = ",".join(span.types), "|".join(span.concepts)
        return "\t".join([document.id, str(start), str(end), text, types, ids])

    title = len(document.text) if document.title is None else document.title
    lines = [f"{document.id}|t|{document.text[:title]}"]
    lines += [f"{document.id}|a|{document.text[title + 1 :]}"] * (title < len(document.text))
    header = _TEXT_LINE.fullmatch(lines[0])
    if not header or header["document"] != document.id or document.id.startswith("\ufeff"):
        raise cannot_write(document, "PubTator", "its id or its text holds a separator")
    lines += map(fields, document.spans)
    if any(re.search(r"[\r\n]", line) for line in lines):
        raise cannot_write(document, "PubTator", "it has a line break")
    return "\n".join([*lines, "", ""])
