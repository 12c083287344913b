"""Curvature operators: symmetric positive semi-definite maps ``Δ ↦ F·Δ`` of one parameter block.

A block's parameters are seen as one matrix Δ of shape [q, p]: q outputs, p inputs (a bias is the
last input). Everything downstream (penalty, prior, tests, figures) is written against
:class:`Operator`, so a new kind of curvature is one new class here.
"""

from __future__ import annotations

from .base import Operator, spread_columns
from .elementwise import Diagonal, Identity
from .kronecker import Kronecker, KroneckerEigen, trace
from .kronecker_sum import KroneckerSum
from .low_rank import LowRankKronecker

__all__ = [
    "OPERATORS",
    "Diagonal",
    "Identity",
    "Kronecker",
    "KroneckerEigen",
    "KroneckerSum",
    "LowRankKronecker",
    "Operator",
    "spread_columns",
    "trace",
]

OPERATORS: dict[str, type[Operator]] = {
    cls.kind: cls
    for cls in (Identity, Diagonal, Kronecker, KroneckerEigen, KroneckerSum, LowRankKronecker)
}
"""Operator classes by the ``kind`` under which they are stored."""
