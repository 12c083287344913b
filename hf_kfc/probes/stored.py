"""What the description of stored probes may hold: anybody may have written it.

The types of the fields are checked when they are read: no ``from __future__ import annotations``.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from ..curvature import Family
from ..schema import COUNT, between, checked

__all__ = ["ColumnEntry", "ProbesEntry", "Source"]

_DEPTH = 8
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


def _settings(values: dict[str, Any]) -> None:
    between(-(2**63), 2**63)([v for v in values.values() if not isinstance(v, str)])


def _digests(values: dict[str, str]) -> None:
    if not all(_DIGEST.fullmatch(value) for value in values.values()):
        raise ValueError


def _family(name: str) -> None:
    if name not in Family.__members__:
        raise ValueError


@dataclass(frozen=True)
class Source:
    """Where probes come from, and what was left out.

    Args:
        name: ``"dataset"``, ``"ontology"``, ``"tokens"``, ``"uniform tokens"``, ``"generated"``,
            ``"new task"``, or a name that the user gave.
        model: Name or path of the model whose outputs are kept.
        settings: How they were made.
        counts: How many were looked at, kept and dropped, by reason.
    """

    name: str = field(metadata=checked("a name"))
    model: str = field(default="", metadata=checked("a name"))
    settings: dict[str, int | float | str] = field(
        default_factory=dict, metadata=checked("numbers and words by name", _settings)
    )
    counts: dict[str, int] = field(default_factory=dict, metadata=checked("counts by name", COUNT))


@dataclass(frozen=True)
class ColumnEntry:
    """One column of the inputs."""

    depth: int = field(metadata=checked(f"a number from 0 to {_DEPTH}", between(0, _DEPTH)))
    are_tensors: bool = field(metadata=checked("true or false"))


@dataclass(frozen=True)
class ProbesEntry:
    """What a prior's description says of its probes."""

    family: str = field(metadata=checked(f"one of {', '.join(f.name for f in Family)}", _family))
    classes: int = field(metadata=checked("a count", COUNT))
    columns: dict[str, dict[str, Any]] = field(metadata=checked("columns by name"))
    source: dict[str, Any] = field(metadata=checked("an object"))
    anchor_digests: dict[str, str] = field(metadata=checked("sums by name", _digests))
