"""Curvature operators: symmetric positive semi-definite maps ``Δ ↦ F·Δ`` of one parameter block.

A block's parameters are seen as one matrix Δ of shape [q, p]: q outputs, p inputs (a bias is the
last input). Everything downstream (penalty, prior, commands, tests) is written against
:class:`Operator` and asks for no kind, so a new curvature is one new class.
"""

from __future__ import annotations

from typing import TypeVar

from ...errors import CurvatureError
from .base import Eigenbasis, KroneckerTerm, Operator, StoredFactor, relative_difference
from .factors import spread_columns, trace
from .kronecker import Kronecker, KroneckerSum
from .low_rank import LowRankKronecker, LowRankKroneckerSum
from .solving import Solution
from .spectral import Diagonal, Identity, KroneckerEigen
from .stack import KroneckerStack, LowRankKroneckerStack, Stack

__all__ = [
    "OPERATORS",
    "Diagonal",
    "Eigenbasis",
    "Identity",
    "Kronecker",
    "KroneckerEigen",
    "KroneckerStack",
    "KroneckerSum",
    "KroneckerTerm",
    "LowRankKronecker",
    "LowRankKroneckerStack",
    "LowRankKroneckerSum",
    "Operator",
    "Solution",
    "Stack",
    "StoredFactor",
    "register_operator",
    "relative_difference",
    "spread_columns",
    "trace",
]

OPERATORS: dict[str, type[Operator]] = {
    cls.kind: cls
    for cls in (
        Identity,
        Diagonal,
        Kronecker,
        KroneckerEigen,
        KroneckerSum,
        LowRankKronecker,
        LowRankKroneckerSum,
        KroneckerStack,
        LowRankKroneckerStack,
    )
}
"""Operator classes by the ``kind`` under which they are stored."""

_Class = TypeVar("_Class", bound=type[Operator])


def register_operator(cls: _Class) -> _Class:
    """Let priors store and read a new kind of curvature; to be used as a decorator.

    Args:
        cls: The class, with a ``kind`` that no other class has.

    Raises:
        CurvatureError: Another class has the kind.
    """
    if OPERATORS.setdefault(cls.kind, cls) is not cls:
        raise CurvatureError(
            f"operator kind '{cls.kind}' is {OPERATORS[cls.kind].__name__}'s; give "
            f"{cls.__name__} another"
        )
    return cls
