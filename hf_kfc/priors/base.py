"""What a prior is: parts that fit each other. What can be done with it stands elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cached_property
from typing import TypeVar

from torch import Tensor

from ..curvature import Curvature
from ..errors import PriorError
from ..hub import Source
from ..probes import Probes
from ..text import printable
from .content import fingerprint_of, problems_of_parts, to_content
from .provenance import Provenance

__all__ = ["BasePrior", "PriorT", "tell_left_out"]

logger = logging.getLogger(__name__)


class BasePrior:
    """Anchor θ*, curvature F and provenance of one task.

    Attributes:
        source: The commit on the Hub that it was read from; None of a folder or a fresh one.

    Raises:
        PriorError: The parts do not fit each other; all problems are listed.
    """

    def __init__(
        self,
        anchor: Mapping[str, Tensor],
        curvature: Curvature,
        provenance: Provenance,
        probes: Probes | None = None,
    ) -> None:
        self.anchor = dict(anchor)
        self.curvature = curvature
        self.provenance = provenance
        self.probes = probes
        self.source: Source | None = None
        if not isinstance(probes, Probes | None):
            raise PriorError(f"a {type(probes).__name__} is no Probes; make some of the model")
        if problems := problems_of_parts(self.anchor, curvature, provenance, probes):
            raise PriorError(
                f"prior of task '{provenance.task}' is unusable: {'; '.join(problems)}"
            )

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.provenance.task

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the anchor, the operators and the probes as they are stored."""
        return fingerprint_of(
            *to_content(self.anchor, self.curvature, self.provenance, self.probes)
        )


def tell_left_out(prior: BasePrior, reason: str) -> None:
    """Warn that what is made of a prior has not its probes; the reason ends the sentence."""
    if prior.probes is not None:
        logger.warning(
            "the %d probes of prior '%s' are left out: %s",
            len(prior.probes),
            printable(prior.task),
            reason,
        )


PriorT = TypeVar("PriorT", bound=BasePrior)
"""A kind of prior: what makes one of another returns the same kind."""
