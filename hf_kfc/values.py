"""Whether a value that a user gives is a number: one of numpy is, ``True`` is not."""

from __future__ import annotations

from math import isfinite
from numbers import Integral, Real

__all__ = ["is_number", "is_whole"]


def is_number(value: object) -> bool:
    """Return whether it is a finite number, which a float can hold."""
    try:
        return not isinstance(value, bool) and isinstance(value, Real) and isfinite(value)
    except OverflowError:
        return False


def is_whole(value: object) -> bool:
    """Return whether it is a whole number by its type: 2.0 is none."""
    return not isinstance(value, bool) and isinstance(value, Integral)
