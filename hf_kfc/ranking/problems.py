"""Malformed records: refuse the first one, or count them by reason; and texts for lists."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, TypeVar

from ..errors import DataError

__all__ = ["ON_ERROR", "Problems", "refuse_text"]

logger = logging.getLogger(__name__)

_Texts = TypeVar("_Texts", bound=Iterable[Any] | None)

ON_ERROR = ("raise", "count")
"""What can be done about a malformed record."""


class Problems:
    """What a reader tells of malformed records; the user has chosen what comes of it.

    Args:
        on_error: ``"raise"`` an error at the first one, or leave them out and ``"count"`` them.

    Attributes:
        counts: Malformed records by reason.

    Raises:
        DataError: ``on_error`` is something else.

    Example:
        >>> problems = Problems("count")
        >>> problems("line is not JSON", "a.jsonl:7", "not JSON; correct or remove the line")
        >>> problems.counts
        {'line is not JSON': 1}
    """

    def __init__(self, on_error: str = "raise") -> None:
        if on_error not in ON_ERROR:
            raise DataError(f"on_error is {on_error!r}; give {' or '.join(map(repr, ON_ERROR))}")
        self.on_error = on_error
        self.counts: dict[str, int] = {}

    def __call__(self, reason: str, where: str, message: str) -> None:
        """Raise or count one record; after it returns, the reader leaves the record out.

        Args:
            reason: What is wrong, in words that are the same for all such records.
            where: File and line, ``"path:number"``, or as near to it as the format allows.
            message: What is wrong with this one, and what to do.

        Raises:
            DataError: ``on_error`` is ``"raise"``.
        """
        if self.on_error == "raise":
            raise DataError(f"{where}: {message}")
        if reason not in self.counts:
            logger.warning("%s: %s; it and others like it are left out", where, message)
        self.counts[reason] = self.counts.get(reason, 0) + 1


def refuse_text(what: str, texts: _Texts) -> _Texts:
    """Refuse a text in the place of a list of texts: it would be taken for a list of letters."""
    if isinstance(texts, str | bytes):
        raise DataError(f"{what} is the text {texts[:80]!r}; give a list, [{texts[:80]!r}]")
    return texts
