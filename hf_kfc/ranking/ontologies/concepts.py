"""Making concepts of names, and widening an ontology by what a corpus calls its concepts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ...errors import DataError
from ..schema import Concept, Mention

__all__ = ["concept_from_names", "surface_forms", "widened"]


def concept_from_names(id_: str, names: Iterable[str], types: Iterable[str] = ()) -> Concept:
    """Make a concept of a list of names.

    Args:
        id_: Its identifier.
        names: The first is the preferred one. White space around a name, a name without anything
            else, and a name that repeats an earlier one, compared without case, are left out.
        types: Its semantic types.

    Raises:
        DataError: No name is left.
    """
    distinct: dict[str, str] = {}
    for name in map(str.strip, names):
        if name:
            distinct.setdefault(name.lower(), name)
    if not distinct:
        raise DataError(f"concept {id_!r} has no name; give it one, or leave it out")
    preferred, *synonyms = distinct.values()
    return Concept(id_, preferred, tuple(synonyms), tuple(types))


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


def widened(concepts: Iterable[Concept], names: Mapping[str, Sequence[str]]) -> Iterator[Concept]:
    """Give concepts more names; names of concepts that are not there make new ones.

    Args:
        concepts: The concepts.
        names: Further names by identifier.

    Yields:
        The concepts in their order, then the new ones in the order of ``names``; of a new one the
        first name is the preferred one.
    """
    left = dict(names)
    for concept in concepts:
        more = left.pop(concept.id, ())
        yield concept_from_names(concept.id, (*concept.names, *more), concept.types)
    for id_, spellings in left.items():
        yield concept_from_names(id_, spellings)
