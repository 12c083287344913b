"""Making an ontology of names and of what a corpus calls its concepts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from .schema import Concept, Mention

__all__ = ["concepts_from_names", "surface_forms"]


def concepts_from_names(names: Mapping[str, Iterable[str]]) -> list[Concept]:
    """Make concepts of lists of names.

    Args:
        names: At least one name for each identifier; the first is the preferred one. A name that
            repeats an earlier one of its concept, compared without case, is left out.

    Returns:
        The concepts, in the order of ``names``.
    """
    concepts = []
    for id_, spellings in names.items():
        distinct: dict[str, str] = {}
        for name in spellings:
            distinct.setdefault(name.lower(), name)
        preferred, *synonyms = distinct.values()
        concepts.append(Concept(id_, preferred, tuple(synonyms)))
    return concepts


def surface_forms(mentions: Iterable[Mention]) -> dict[str, list[str]]:
    """Collect the words by which mentions refer to each concept.

    Args:
        mentions: Mentions of the train split; those of other splits would leak their answers.

    Returns:
        The distinct texts for each concept, the most frequent first, then by first appearance.
    """
    counters: dict[str, Counter[str]] = {}
    for mention in mentions:
        counters.setdefault(mention.concept, Counter())[mention.text.strip()] += 1
    return {
        concept: [text for text, _ in counter.most_common()]
        for concept, counter in counters.items()
    }
