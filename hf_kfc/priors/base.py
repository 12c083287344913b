"""What a prior is: parts that fit each other. What can be done with it stands elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TypeVar

from torch import Tensor

from ..curvature import Block, Curvature
from ..errors import PriorError
from ..hub import Source
from ..probes import Probes
from ..text import printable
from .content import Parts, fingerprint_of, to_content
from .problems import problems_of_parts
from .provenance import Provenance

__all__ = ["BasePrior", "PriorT", "parts_without", "tell_left_out"]

logger = logging.getLogger(__name__)


class BasePrior:
    """Anchor θ*, curvature F and provenance of one task.

    Args:
        anchor: Parameters right after the task, by name.
        curvature: Covers exactly the anchor's names and shapes.
        provenance: Where it comes from.
        probes: Inputs on which the anchor's outputs are kept.

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


def parts_without(prior: BasePrior, patterns: Sequence[str]) -> Parts:
    """Leave blocks out of a prior; their parameters are ignored, and probes are left out aloud."""
    left, out = list[Block](), list[Block]()
    missed = dict.fromkeys(patterns)
    for block in prior.curvature.blocks:
        names = (block.name, *block.shapes)
        matched = [p for p in patterns if any(fnmatchcase(name, p) for name in names)]
        (out if matched else left).append(block)
        for pattern in matched:
            missed.pop(pattern, None)
    if missed or not left:
        what = f"no block is called '{next(iter(missed))}'" if missed else "nothing would be left"
        blocks = ", ".join(block.name for block in prior.curvature.blocks)
        raise PriorError(f"prior of task '{prior.task}': {what}; its blocks are {blocks}")
    tell_left_out(
        prior,
        "a model that differs in other blocks may decide something else; give them to the trainer "
        "where it decides the same",
    )
    ignored = {*prior.curvature.ignored, *(name for block in out for name in block.shapes)}
    curvature = replace(prior.curvature, blocks=tuple(left), ignored=tuple(sorted(ignored)))
    kept = {block.name for block in left}
    origin = prior.provenance
    provenance = replace(
        origin,
        dropped_inputs={n: v for n, v in origin.dropped_inputs.items() if n in kept},
        approximation_errors={n: v for n, v in origin.approximation_errors.items() if n in kept},
    )
    anchor = {n: value for n, value in prior.anchor.items() if n in curvature.parameters}
    return anchor, curvature, provenance
