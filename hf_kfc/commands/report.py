"""What a command has found, for programs and for people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Report", "aligned", "megabytes", "number"]


@dataclass(frozen=True)
class Report:
    """What a command has found.

    Args:
        values: As JSON values.
        text: For people.
        misfits: What does not fit; if there is any, the command ends with status 1.
    """

    values: dict[str, Any]
    text: str
    misfits: Sequence[str] = ()


def aligned(rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Lay rows of cells out as a table with columns of one width each.

    Args:
        rows: The first holds the headings, if there are any.
        left: How many columns are words, aligned on the left; the others are numbers.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def number(value: float | None) -> str:
    """Write a number with three digits; a dash if there is none."""
    return "-" if value is None else f"{value:.3g}"


def megabytes(size: int) -> str:
    """Write a size in bytes in MB."""
    return f"{size / 1e6:,.1f}" if size >= 1e6 else f"{size / 1e6:.2g}"
