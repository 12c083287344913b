"""ICD-10-CM: the official order file, and tables with a header."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ..concepts import concept_from_names, icd10_code
from ..formats.lines import read_lines
from ..formats.tables import read_table
from ..problems import Problems
from ..schema import Concept

__all__ = ["read_icd10cm"]

_CODE = re.compile(r"[0-9A-Z]{3,7}")
# Order number, code, whether it is billable, short description, long description.
_ORDER_LINE = re.compile(
    r"[0-9]{5} (?P<code>.{7}) (?P<billable>[01]) (?P<shortdesc>.{60}) (?P<longdesc>.+)"
)
_BILLABLE = {"1": True, "true": True, "0": False, "false": False}


def read_icd10cm(
    *paths: str | Path, problems: Problems | None = None, billable_only: bool = False
) -> Iterator[Concept]:
    """Read the codes of ICD-10-CM (or of ICD-10-PCS, whose order file has the same form).

    The long description is the preferred name, the short one a synonym. The identifier is the
    code in capitals without its dot, as the official files have it.

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
        for where, row in _rows(path, problems, billable_only):
            code, name = icd10_code(row["code"]), row["longdesc"].strip()
            flag, chapter = row.get("billable", "1"), row.get("chapter", "").strip()
            billable = _BILLABLE.get(flag.strip().lower())
            if not _CODE.fullmatch(code) or not name or billable is None:
                message = (
                    f"code {row['code']!r}, billable {flag!r}, name {name[:80]!r}; give 3 to 7 "
                    "letters and digits, true or false (or 1 or 0), and a name"
                )
                problems("code, billable flag or name is malformed", where, message)
            elif code in seen:
                message = f"code {code!r} comes twice; remove one of its lines"
                problems("code comes twice", where, message)
            else:
                seen.add(code)
                if billable or not billable_only:
                    names = (name, row.get("shortdesc", ""))
                    yield concept_from_names(code, names, (chapter,) if chapter else ())


def _rows(
    path: str | Path, problems: Problems, billable_only: bool
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield where each line of either form stands, and its fields."""
    _, first = next(read_lines(path, Problems("count")), (0, None))
    if first is None:
        return
    if not _ORDER_LINE.fullmatch(first):
        columns = ("code", "longdesc", *(["billable"] if billable_only else []))
        yield from read_table(path, columns, problems, rename=_column)
        return
    for number, line in read_lines(path, problems):
        if match := _ORDER_LINE.fullmatch(line):
            yield f"{path}:{number}", match.groupdict()
        else:
            message = f"not a line of the order file: {line[:80]!r}; correct or remove it"
            problems("not a line of the order file", f"{path}:{number}", message)


def _column(title: str) -> str:
    """Give "Long Description" and "long_desc" one name."""
    return re.sub("[^a-z]", "", title.lower()).replace("description", "desc")
