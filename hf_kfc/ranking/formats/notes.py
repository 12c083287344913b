"""Notes with coded spans, as JSON lines or as a table beside the notes' texts."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..problems import Problems
from .lines import read_lines, read_text
from .spans import Pieces, span_text

__all__ = ["CodedSpan", "Note", "read_json_notes", "read_note_texts", "read_table_notes"]

_COLUMNS = ("note", "start", "end", "code")
_OFFSET = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True)
class CodedSpan:
    """A marked span of a note.

    Args:
        pieces: Start and end of each of its pieces.
        text: The pieces as they stand in the note, joined by spaces.
        codes: The codes it was given, as the file writes them; none for a span without a code.
        where: File and line, ``"path:number"``.
        remarks: What is unusual about it, in words that are the same for all such spans.
    """

    pieces: Pieces
    text: str
    codes: tuple[str, ...]
    where: str
    remarks: tuple[str, ...] = ()


@dataclass(slots=True)
class Note:
    """A note and its coded spans.

    Args:
        id: Its identifier.
        text: Its text, which offsets count in.
        spans: The spans, in the file's order.
    """

    id: str
    text: str
    spans: list[CodedSpan] = field(default_factory=list)


def read_json_notes(
    paths: Iterable[str | Path], problems: Problems | None = None
) -> Iterator[Note]:
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
        yield Note(id_, text, [span for span in found if span])


def read_table_notes(
    paths: Iterable[str | Path], texts: Mapping[str, str], problems: Problems | None = None
) -> Iterator[Note]:
    """Read notes from tables of spans, one a row, and the texts that they are in.

    A table has a header with ``note``, ``start``, ``end``, ``code`` and, optionally, ``mention``,
    which is then checked; it may have other columns. Where the header has a tab the table is
    taken to be tab-separated, without quotes; else it is CSV.

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
    notes: dict[str, Note] = {}
    for path in paths:
        for where, row in _table_rows(path, problems):
            id_ = row["note"]
            if id_ not in texts:
                message = f"there is no text of note {id_[:80]!r}; add it or remove the row"
                problems("note without text", where, message)
                continue
            note = notes.setdefault(id_, Note(id_, texts[id_]))
            if span := _table_span(where, row, note.text, problems):
                note.spans.append(span)
    yield from notes.values()


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
    paths = list(paths)
    files = [path for path in paths if Path(path).suffix == ".txt"]
    tables = [path for path in paths if Path(path).suffix != ".txt"]
    texts = {id_: text for _, id_, text, _ in _json_records(tables, problems)}
    for path in files:
        id_ = Path(path).stem
        if id_ in texts:
            problems("note comes twice", str(path), f"note {id_!r} comes twice; remove one of them")
            continue
        try:
            texts[id_] = read_text(path)
        except DataError as error:
            problems("text cannot be read", str(path), str(error).removeprefix(f"{path}: "))
    return texts


def _json_records(
    paths: Iterable[str | Path], problems: Problems
) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    """Yield where each record stands, its id, its text and all of it."""
    seen: set[str] = set()
    for path in paths:
        for number, line in read_lines(path, problems):
            where = f"{path}:{number}"
            try:
                record = json.loads(line)
                json.dumps(record, ensure_ascii=False).encode()  # "\\ud800" is no character
            except (ValueError, RecursionError):
                problems("line is not JSON", where, "not JSON; correct or remove the line")
                continue
            fields = record if isinstance(record, dict) else {}
            id_, text = fields.get("id"), fields.get("text")
            if not (isinstance(id_, str) and id_ and isinstance(text, str)):
                message = "expected an object with the strings 'id' and 'text'; correct the line"
                problems("note without id or text", where, message)
            elif id_ in seen:
                message = f"note {id_[:80]!r} comes twice; remove one of them"
                problems("note comes twice", where, message)
            else:
                seen.add(id_)
                yield where, id_, text, fields


def _json_span(where: str, span: Any, text: str, problems: Problems) -> CodedSpan | None:
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
    return _coded(((start, end),), code or "", where, text, problems, written)


def _table_rows(path: str | Path, problems: Problems) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield where each row stands, and its fields by column."""
    number = 0

    def lines() -> Iterator[str]:
        nonlocal number
        for number, line in read_lines(path, problems):  # noqa: B007  # read by the loop below
            yield f"{line}\n"

    remaining = lines()
    header = next(remaining, "")
    tabs = "\t" in header
    options: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {}
    columns = next(csv.reader([header], **options), [])
    missing = [column for column in _COLUMNS if column not in columns]
    if missing:
        raise DataError(f"{path}:1: no column {missing[0]!r} in the header; add or rename it")
    rows = csv.reader(remaining, strict=True, **options)
    while True:
        first = number + 1  # a quoted field may run over several lines
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            message = f"not a row of the table ({error}); correct or remove it"
            problems("malformed row", f"{path}:{first}", message)
            continue
        if len(row) != len(columns):
            if row:
                message = f"expected {len(columns)} fields, got {len(row)}; correct the row"
                problems("malformed row", f"{path}:{first}", message)
            continue
        yield f"{path}:{first}", dict(zip(columns, row, strict=True))


def _table_span(where: str, row: dict[str, str], text: str, problems: Problems) -> CodedSpan | None:
    start, end = row["start"], row["end"]
    if not (_OFFSET.fullmatch(start) and _OFFSET.fullmatch(end)):
        message = f"start {start[:80]!r} and end {end[:80]!r} are not numbers; correct the row"
        problems("malformed row", where, message)
        return None
    pieces = ((int(start), int(end)),)
    return _coded(pieces, row["code"], where, text, problems, row.get("mention"))


def _coded(
    pieces: Pieces, code: str, where: str, text: str, problems: Problems, written: str | None
) -> CodedSpan | None:
    found = span_text(text, pieces, where, problems, written)
    codes = (code.strip(),) if code.strip() else ()
    return None if found is None else CodedSpan(pieces, found, codes, where)
