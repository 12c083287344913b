"""Notes with coded spans, as JSON lines or as a table beside the notes' texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from ...errors import DataError
from ..problems import Problems, refuse_text
from .documents import Candidate, Document, Pieces, Span, span_text
from .lines import read_json_lines, read_text
from .tables import read_table

__all__ = ["NoteTable", "json_note", "read_json_notes", "read_note_texts", "read_table_notes"]

_OFFSET = re.compile(r"[0-9]{1,9}")


def read_json_notes(
    paths: Iterable[str | Path], problems: Problems | None = None, *, coded: bool = True
) -> Iterator[Document]:
    """Read notes from JSON lines, one a line.

    A note is ``{"id": ..., "text": ..., "spans": [{"start": ..., "end": ..., "code": ...}]}``; a
    span may call its code ``"concept"``, have its ``"text"``, which is then checked, and a ``null``
    for its code. It may be in ``"pieces"``, ``[[start, end], ...]``, and have a list of codes, one
    or a list of each of ``"type"``, ``"name"`` and ``"note"``, a ``"key"`` and, from a linker, a
    ``"probability"`` and ``"candidates"``, ``[{"id": ..., "name": ..., "probability": ...}]``. A
    note that is a part of a document says of which, ``"document"``. A line may also be a single
    mention in the text around it, ``{"doc": ..., "left": ..., "mention": ..., "right": ..., "cui":
    ...}``: a part of its document, with the number of the line in its id.

    Args:
        paths: The files, gzipped or not.
        problems: Told of malformed notes and spans, each left out; by default they raise.
        coded: Whether a span must have a code, even if ``null``.

    Yields:
        The notes, in the files' order.

    Raises:
        DataError: A file is missing, or ``problems`` raises.
    """
    problems = problems or Problems()
    for where, id_, text, record in _json_records(paths, problems):
        spans = record.get("spans")
        if not isinstance(spans, list):
            problems("note without spans", where, "expected a list 'spans'; add it, empty or not")
            continue
        found = (_json_span(where, span, text, problems, coded) for span in spans)
        source = str(record.get("document") or "")
        yield Document(id_, text, [span for span in found if span], source=source)


def read_note_texts(
    paths: Iterable[str | Path], problems: Problems | None = None
) -> dict[str, str]:
    """Read the texts of notes.

    Args:
        paths: ``.txt`` files, each a note whose identifier is its name, and files of JSON lines
            ``{"id": ..., "text": ...}``.
        problems: Told of texts that cannot be read or come twice; by default they raise.

    Returns:
        The texts by identifier.

    Raises:
        DataError: A file is missing, or ``problems`` raises.
    """
    problems = problems or Problems()
    files = list(map(Path, refuse_text("paths", paths)))
    tables = [path for path in files if path.suffix != ".txt"]
    texts = {id_: text for _, id_, text, _ in _json_records(tables, problems)}
    for path in (path for path in files if path.suffix == ".txt"):
        if path.stem in texts:
            message = f"note {path.stem!r} comes twice; remove one of them"
            problems("note comes twice", str(path), message)
            continue
        try:
            texts[path.stem] = read_text(path)
        except DataError as error:
            problems("text cannot be read", str(path), str(error).removeprefix(f"{path}: "))
    return texts


class NoteTable:
    """Gathers spans, as rows of tables give them, by the notes that they are in.

    Args:
        texts: The text of each note by its identifier.
        problems: Told of spans of other notes, and of spans that are not in their text.
    """

    def __init__(self, texts: Mapping[str, str], problems: Problems) -> None:
        self._texts, self._problems = texts, problems
        self.notes: dict[str, Document] = {}

    def text(self, id_: str, where: str) -> str | None:
        """Find the text of a note; none, which is reported, where it is not there."""
        if id_ not in self._texts:
            message = f"there is no text of note {id_[:80]!r}; add it or remove the row"
            self._problems("note without text", where, message)
        return self._texts.get(id_)

    def add(
        self,
        id_: str,
        pieces: Pieces,
        codes: tuple[str, ...],
        where: str,
        written: str | None = None,
        remarks: tuple[str, ...] = (),
    ) -> None:
        """Check a span and add it to its note (see :class:`Span`)."""
        text = self._texts[id_]
        note = self.notes.setdefault(id_, Document(id_, text))
        found = span_text(text, pieces, where, self._problems, written)
        if found is not None:
            note.spans.append(Span(pieces, found, codes, where, remarks=remarks))


def read_table_notes(
    paths: Iterable[str | Path], texts: Mapping[str, str], problems: Problems | None = None
) -> Iterator[Document]:
    """Read notes from tables of spans, one a row, and the texts that they are in.

    A table has a header with ``note``, ``start``, ``end``, ``code`` and, optionally, ``mention``,
    which is then checked; it may have other columns (see :func:`read_table`).

    Args:
        paths: The tables, gzipped or not.
        texts: The text of each note by its identifier (see :func:`read_note_texts`).
        problems: Told of malformed rows, each left out; by default they raise.

    Yields:
        The notes that have spans, in the order of their first rows.

    Raises:
        DataError: A file or a column is missing, or ``problems`` raises.
    """
    problems = problems or Problems()
    table = NoteTable(texts, problems)
    for path in refuse_text("paths", paths):
        for where, row in read_table(path, ("note", "start", "end", "code"), problems):
            start, end = row["start"], row["end"]
            if table.text(row["note"], where) is None:
                continue
            if not (_OFFSET.fullmatch(start) and _OFFSET.fullmatch(end)):
                message = f"start {start[:80]!r} and end {end[:80]!r} are not numbers; correct them"
                problems("malformed row", where, message)
                continue
            pieces = ((int(start), int(end)),)
            table.add(row["note"], pieces, _codes(row["code"]), where, row.get("mention"))
    yield from table.notes.values()


def _json_records(
    paths: Iterable[str | Path], problems: Problems
) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Yield where each record stands, its id, its text and all of it."""
    seen: set[str] = set()
    for path in refuse_text("paths", paths):
        for where, line in read_json_lines(path, problems):
            record = _note_of_mention(where, line) if "mention" in line else line
            id_, text = record.get("id"), record.get("text")
            if not (isinstance(id_, str) and id_ and isinstance(text, str)):
                message = "expected an object with the strings 'id' and 'text'; correct the line"
                problems("note without id or text", where, message)
            elif id_ in seen:
                message = f"note {id_[:80]!r} comes twice; remove one of them"
                problems("note comes twice", where, message)
            else:
                seen.add(id_)
                yield where, id_, text, record


def _note_of_mention(where: str, line: dict[str, Any]) -> dict[str, Any]:
    """Make a note of a mention between what is left and right of it, if it is one."""
    document, mention, *around = (line.get(key) for key in ("doc", "mention", "left", "right"))
    left, right = ("" if own is None else own for own in around)
    if not all(isinstance(own, str) for own in (document, mention, left, right)):
        return line
    start = len(f"{left} ") if left else 0
    span = {"start": start, "end": start + len(str(mention)), "code": line.get("cui")}
    return {
        "id": f"{document}#{where.rpartition(':')[2]}",
        "document": document,
        "text": " ".join(part for part in (left, mention, right) if part),
        "spans": [span],
    }


def _json_span(where: str, span: Any, text: str, problems: Problems, coded: bool) -> Span | None:
    fields = span if isinstance(span, dict) else {}
    pieces = fields.get("pieces", [[fields.get("start"), fields.get("end")]])
    missing = 0 if coded else None  # 0: no code is not a null code
    codes = _strings(fields.get("code", fields.get("concept", missing)))
    types, names, notes = (_strings(fields.get(key)) for key in ("type", "name", "note"))
    written, key, probability = (fields.get(key) for key in ("text", "key", "probability"))
    candidates = _candidates(fields.get("candidates", []))
    if (
        not (isinstance(pieces, list) and pieces and all(map(_is_piece, pieces)))
        or codes is None
        or types is None
        or names is None
        or notes is None
        or candidates is None
        or not (isinstance(written, str | None) and isinstance(key, str | None))
        or not (probability is None or _is_probability(probability))
    ):
        message = (
            f"span {str(span)[:80]} is no object with the numbers 'start' and 'end' and a "
            "'code'; correct or remove it"
        )
        problems("malformed span", where, message)
        return None
    found = tuple((start, end) for start, end in pieces)
    words = span_text(text, found, where, problems, written)
    if words is None:
        return None
    codes = tuple(code for own in codes for code in _codes(own))
    read = Span(found, words, codes, where, key or "", types, names, notes)
    return replace(read, probability=probability, candidates=candidates)


def _is_piece(piece: Any) -> bool:
    # Not `isinstance`: True is an int.
    return isinstance(piece, list) and [type(offset) for offset in piece] == [int, int]


def _is_probability(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _strings(value: Any) -> tuple[str, ...] | None:
    """Read a string, a list of them or null; None of anything else."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(values) if all(isinstance(own, str) for own in values) else None


def _candidates(values: Any) -> tuple[Candidate, ...] | None:
    found = []
    for value in values if isinstance(values, list) else [None]:
        fields: dict[str, Any] = value if isinstance(value, dict) else {}
        id_, name, probability = map(fields.get, Candidate._fields)
        if not (isinstance(id_, str) and isinstance(name, str) and _is_probability(probability)):
            return None
        found.append(Candidate(id_, name, cast("float", probability)))
    return tuple(found)


def json_note(document: Document) -> dict[str, Any]:
    """Write a document as :func:`read_json_notes` reads it, all of it but files, lines and remarks.

    Args:
        document: The document.

    Returns:
        An object of JSON.
    """
    part = {"document": document.source} if document.source else {}
    spans = list(map(_span, document.spans))
    return {"id": document.id, **part, "text": document.text, "spans": spans}


def _span(span: Span) -> dict[str, Any]:
    start, end = min(s for s, _ in span.pieces), max(e for _, e in span.pieces)
    found: dict[str, Any] = {"start": start, "end": end}
    if len(span.pieces) > 1:
        found["pieces"] = [list(piece) for piece in span.pieces]
    found |= {"text": span.text, "code": _one(span.concepts)}
    more: dict[str, Any] = {
        "name": _one(span.names),
        "type": _one(span.types),
        "note": _one(span.notes),
    }
    more |= {"key": span.key, "probability": span.probability}
    more |= {"candidates": [candidate._asdict() for candidate in span.candidates]}
    return found | {key: value for key, value in more.items() if value not in (None, "", [])}


def _one(values: tuple[str, ...]) -> str | list[str] | None:
    """A value that stands alone needs no list, unless it is empty."""
    return (values[0] if len(values) == 1 and values[0] else list(values)) if values else None


def _codes(code: str) -> tuple[str, ...]:
    return (code.strip(),) if code.strip() else ()
