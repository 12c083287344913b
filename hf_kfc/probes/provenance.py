"""Where probes come from.

The types of the fields are checked when they are read: no ``from __future__ import annotations``.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from ..schema import COUNT, checked

__all__ = ["Source"]


@dataclass(frozen=True)
class Source:
    """Where probes come from, and what was left out.

    Args:
        name: ``"dataset"``, ``"ontology"``, ``"tokens"``, ``"generated"``, ``"new task"``, or a
            name that the user gave.
        model: Name or path of the model whose outputs are kept.
        settings: How they were made.
        counts: How many were looked at, kept and dropped, by reason.
    """

    name: str = field(metadata=checked("a name"))
    model: str = field(default="", metadata=checked("a name"))
    settings: dict[str, int | float | str] = field(
        default_factory=dict, metadata=checked("numbers and words by name")
    )
    counts: dict[str, int] = field(default_factory=dict, metadata=checked("counts by name", COUNT))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)
