"""What a linker says of a mention."""

from __future__ import annotations

from dataclasses import dataclass

from ..formats.documents import Candidate

__all__ = ["LinkedMention"]


@dataclass(frozen=True, slots=True)
class LinkedMention:
    """A mention, and what it is linked to.

    Args:
        start: Where it begins in its text, in characters; of one in several pieces, the first.
        end: Where it ends, exclusive; of one in several pieces, the last.
        text: Its words.
        concept: Identifier of the concept, as the ontology writes it; None where nothing was found
            or the probability is below the threshold.
        name: The concept's preferred name; None where there is no concept.
        probability: That the best candidate is the right one, 0 where there is none.
        candidates: The concepts that retrieval found, the most probable first. Those that only
            fill the list up are left out, as chance put them there; they keep their probability,
            so that what stands here may add up to less than 1.
    """

    start: int
    end: int
    text: str
    concept: str | None
    name: str | None
    probability: float
    candidates: tuple[Candidate, ...]
