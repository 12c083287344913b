"""What a prior is: parts that fit each other. What can be done with it stands elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TypeVar

from torch import Tensor

from ..curvature import Curvature
from ..errors import PriorError
from .content import fingerprint_of, to_content
from .problems import problems_of_parts
from .provenance import Provenance

__all__ = ["BasePrior", "PriorT"]


class BasePrior:
    """Anchor θ*, curvature F and provenance of one task.

    Args:
        anchor: Parameters right after the task, by name.
        curvature: Covers exactly the anchor's names and shapes.
        provenance: Where it comes from.

    Raises:
        PriorError: The parts do not fit each other; all problems are listed.
    """

    def __init__(
        self, anchor: Mapping[str, Tensor], curvature: Curvature, provenance: Provenance
    ) -> None:
        self.anchor = dict(anchor)
        self.curvature = curvature
        self.provenance = provenance
        if problems := problems_of_parts(self.anchor, curvature, provenance):
            raise PriorError(
                f"prior of task '{provenance.task}' is unusable: {'; '.join(problems)}"
            )

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.provenance.task

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the anchor and the operators as they are stored."""
        return fingerprint_of(*to_content(self.anchor, self.curvature, self.provenance))


PriorT = TypeVar("PriorT", bound=BasePrior)
"""A kind of prior: what makes one of another returns the same kind."""
