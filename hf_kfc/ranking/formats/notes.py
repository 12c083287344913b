"""Notes with coded spans, as JSON lines or as a table beside the notes' texts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..problems import Problems
from .documents import Document, Pieces, Span, span_text
from .lines import read_json_lines, read_text
from .tables import read_table

__all__ = ["NoteTable", "read_json_notes", "read_note_texts", "read_table_notes"]

_OFFSET = re.compile(r"[0-9]{1,9}")


def read_json_notes(
    paths: Iterable[str | Path], problems: Problems | None = None
) -> Iterator[Document]:
    """Read notes from JSON lines, one a line.

    A note is ``{"id": ..., "text": ..., "spans": [{"start": ..., "end": ..., "code": ...}]}``; a
    span may also have its ``"text"``, which is then checked, and a ``null`` for its code.

    Args:
        paths: The files, gzipped or not.
        problems: Told of malformed notes and spans, each left out; by default they raise.

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
        found = (_json_span(where, span, text, problems) for span in spans)
        yield Document(id_, text, [span for span in found if span])


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
    files = list(map(Path, paths))
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
    for path in paths:
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
    for path in paths:
        for where, record in read_json_lines(path, problems):
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


def _json_span(where: str, span: Any, text: str, problems: Problems) -> Span | None:
    fields = span if isinstance(span, dict) else {}
    start, end = fields.get("start"), fields.get("end")
    code, written = fields.get("code", 0), fields.get("text")  # 0: no code is not a null code
    # Not `isinstance`: True is an int.
    if (
        not (type(start) is int and type(end) is int)
        or not isinstance(code, str | None)
        or not isinstance(written, str | None)
    ):
        message = (
            f"span {str(span)[:80]} is no object with the numbers 'start' and 'end' and a "
            "'code'; correct or remove it"
        )
        problems("malformed span", where, message)
        return None
    pieces = ((start, end),)
    found = span_text(text, pieces, where, problems, written)
    return None if found is None else Span(pieces, found, _codes(code or ""), where)


def _codes(code: str) -> tuple[str, ...]:
    return (code.strip(),) if code.strip() else ()
