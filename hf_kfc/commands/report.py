"""What a command has found, for programs and for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..text import printable

__all__ = ["Report", "Table", "megabytes", "number"]

_LINE = 999
_CELL = 200
"""The most characters of a line and of a table's cell: names come from files anybody wrote."""


@dataclass(frozen=True)
class Table:
    """Rows of cells in columns of one width each.

    Args:
        rows: The first holds the headings, if there are any.
        left: How many columns are words, aligned on the left; the others are numbers.
    """

    rows: Sequence[Sequence[str]]
    left: int = 1

    def lines(self) -> list[str]:
        """Lay the rows out."""
        rows = [[printable(cell, _CELL) for cell in row] for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return [
            "  ".join(
                cell.ljust(width) if index < self.left else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]


@dataclass(frozen=True)
class Report:
    """What a command has found.

    Args:
        values: As JSON values.
        parts: For people: tables and lines. A line break within a line would let a name of a
            downloaded file begin a line that looks like ours, so it is escaped.
        problems: What does not fit; if there is any, the command ends with status 1.
    """

    values: dict[str, Any]
    parts: Sequence[Table | str]
    problems: Sequence[str] = ()

    @property
    def text(self) -> str:
        """All parts, tables between empty lines."""
        lines: list[str] = []
        for index, part in enumerate(self.parts):
            if index and (isinstance(part, Table) or isinstance(self.parts[index - 1], Table)):
                lines.append("")
            lines += part.lines() if isinstance(part, Table) else [printable(part, _LINE)]
        return "\n".join(lines)


def number(value: float | None) -> str:
    """Write a number with three digits; a dash if there is none."""
    return "-" if value is None else f"{value:.3g}"


def megabytes(size: int) -> str:
    """Write a size in bytes in MB."""
    return f"{size / 1e6:,.1f}" if size >= 1e6 else f"{size / 1e6:.2g}"
