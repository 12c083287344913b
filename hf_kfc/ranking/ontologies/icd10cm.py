"""ICD-10-CM: the official order file, and tables with a header."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from ...errors import DataError
from ..formats.lines import read_lines
from ..problems import Problems
from ..schema import Concept
from .concepts import concept_from_names

__all__ = ["normal_code", "read_icd10cm"]

_CODE = re.compile(r"[0-9A-Z]{3,7}")
# Order number, code, whether it is billable, short description, long description.
_ORDER_LINE = re.compile(
    r"[0-9]{5} (?P<code>.{7}) (?P<billable>[01]) (?P<short>.{60}) (?P<long>.+)"
)
_BILLABLE = {"1": True, "true": True, "0": False, "false": False}
# What the columns of a table may be called, once all but small letters is taken out.
_COLUMNS = {
    "code": "code",
    "billable": "billable",
    "shortdesc": "short",
    "shortdescription": "short",
    "longdesc": "long",
    "longdescription": "long",
    "chapter": "chapter",
}


class _Row(NamedTuple):
    """A line of either form, as it is written."""

    where: str
    code: str
    long: str
    short: str = ""
    billable: str = "1"
    chapter: str = ""


def normal_code(code: str) -> str:
    """Write a code as the identifiers of :func:`read_icd10cm` are: capitals and no dot.

    Args:
        code: As a corpus writes it, with or without the dot; it is not checked.

    Example:
        >>> normal_code("s22.49xa"), normal_code("A00")
        ('S2249XA', 'A00')
    """
    code = code.strip().upper()
    return code[:3] + code[4:] if code[3:4] == "." else code


def read_icd10cm(
    *paths: str | Path, problems: Problems | None = None, billable_only: bool = False
) -> Iterator[Concept]:
    """Read the codes of ICD-10-CM (or of ICD-10-PCS, whose order file has the same form).

    The long description is the preferred name, the short one a synonym. The identifier is the
    code in capitals without its dot, as the official files have it: see :func:`normal_code`.

    Args:
        *paths: Each the order file (``icd10cm_order_2019.txt``) or a table between tabs or commas
            with a header that names the columns ``code`` and ``long_desc`` (or
            ``long_description``) and may name ``short_desc`` (``short_description``),
            ``billable`` and ``chapter``, which becomes the semantic type; gzipped or not.
        problems: Told of malformed lines; by default they raise.
        billable_only: Whether to leave out the headings, the codes that have longer ones below.

    Yields:
        The codes, in the order of the files.

    Raises:
        DataError: A file is missing or has neither form, or ``problems`` raises.
    """
    problems = problems or Problems()
    seen: set[str] = set()
    for path in paths:
        for row in _rows(Path(path), problems, billable_only):
            code, name, chapter = normal_code(row.code), row.long.strip(), row.chapter.strip()
            billable = _BILLABLE.get(row.billable.strip().lower())
            if not _CODE.fullmatch(code) or not name or billable is None:
                message = (
                    f"code {row.code!r}, billable {row.billable!r}, name {name[:80]!r}; give 3 to "
                    "7 letters and digits, true or false (or 1 or 0), and a name"
                )
                problems("code, billable flag or name is malformed", row.where, message)
            elif code in seen:
                message = f"code {code!r} comes twice; remove one of its lines"
                problems("code comes twice", row.where, message)
            else:
                seen.add(code)
                if billable or not billable_only:
                    yield concept_from_names(code, (name, row.short), (chapter,) if chapter else ())


def _rows(path: Path, problems: Problems, billable_only: bool) -> Iterator[_Row]:
    lines = read_lines(path, problems)
    first = next(lines, None)
    if first is None:
        return
    if _ORDER_LINE.fullmatch(first[1]):
        yield from _order_rows(path, chain([first], lines), problems)
        return
    delimiter = "\t" if "\t" in first[1] else ","
    header = [re.sub("[^a-z]", "", name.lower()) for name in _split(first[1], delimiter) or ()]
    columns = [_COLUMNS.get(name, "") for name in header]
    for needed in ("code", "long", *(["billable"] if billable_only else [])):
        if columns.count(needed) != 1:
            raise DataError(
                f"{path}:{first[0]}: neither a line of the order file nor a header with one column "
                f"{' or '.join(name for name in _COLUMNS if _COLUMNS[name] == needed)}; add it"
            )
    for number, line in lines:
        fields = _split(line, delimiter)
        if fields is None or len(fields) != len(columns):
            message = f"expected {len(columns)} fields, got {line[:80]!r}; correct the line"
            problems("line has not as many fields as the header", f"{path}:{number}", message)
        else:
            row = {name: field for name, field in zip(columns, fields, strict=True) if name}
            yield _Row(f"{path}:{number}", **row)


def _order_rows(path: Path, lines: Iterable[tuple[int, str]], problems: Problems) -> Iterator[_Row]:
    for number, line in lines:
        match = _ORDER_LINE.fullmatch(line)
        if match:
            yield _Row(f"{path}:{number}", **match.groupdict())
        else:
            message = f"not a line of the order file: {line[:80]!r}; correct or remove it"
            problems("not a line of the order file", f"{path}:{number}", message)


def _split(line: str, delimiter: str) -> list[str] | None:
    """Split a line of a table; ``None`` where its quotes do not pair up."""
    if delimiter == "\t":
        return line.split(delimiter)
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error:
        return None
