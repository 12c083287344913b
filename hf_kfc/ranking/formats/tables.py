"""Tables with a header, between tabs or commas."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..problems import Problems
from .lines import read_lines

__all__ = ["read_table"]


def read_table(
    path: str | Path,
    columns: Sequence[str],
    problems: Problems | None = None,
    *,
    rename: Callable[[str], str] = str.strip,
    quotes: bool | None = None,
) -> Iterator[tuple[str, dict[str, str]]]:
    """Read the rows of a table whose header names its columns.

    It is between tabs where its header has one, else between commas. Blank lines are passed over.

    Args:
        path: The file, gzipped or not.
        columns: What must be among its columns, once each.
        problems: Told of rows with more or fewer fields than the header, or with quotes that do
            not pair up; by default they raise.
        rename: What makes a column's name of its title in the header.
        quotes: Whether a field may stand in quotes and then hold line ends; by default so between
            commas.

    Yields:
        File and line, ``"path:number"``, of the beginning of each row, and its fields by column.

    Raises:
        DataError: The file or a column is missing, or ``problems`` raises.
    """
    problems = problems or Problems()
    number = 0

    def lines() -> Iterator[str]:
        nonlocal number
        for number, line in read_lines(path, problems):  # noqa: B007  # read by the loop below
            yield f"{line}\n"

    remaining = lines()
    header = next(remaining, "")
    tabs = "\t" in header
    options: dict[str, Any] = {"delimiter": "\t"} if tabs else {}
    if not (quotes if quotes is not None else not tabs):
        options["quoting"] = csv.QUOTE_NONE
    names = [rename(title) for title in next(csv.reader([header], **options), [])]
    if missing := [column for column in columns if names.count(column) != 1]:
        raise DataError(
            f"{path}:1: no column {', '.join(missing)} in the header, or several; add it or rename"
        )
    rows = csv.reader(remaining, strict=True, **options)
    while True:
        where = f"{path}:{number + 1}"  # a field in quotes may run over several lines
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            message = f"not a row of the table ({error}); correct or remove it"
            problems("malformed row", where, message)
            continue
        if len(row) == len(names):
            yield where, dict(zip(names, row, strict=True))
        elif row:
            message = f"expected {len(names)} fields, got {len(row)}; correct or remove the row"
            problems("malformed row", where, message)
