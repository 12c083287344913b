"""An ontology of any size, invented and made as it is read: always the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hf_kfc.ranking.schema import Concept

__all__ = ["invented_concepts", "invented_queries"]

_SYLLABLES = (
    *("an", "ar", "car", "cer", "co", "cor", "dia", "en", "er", "gas", "hep", "ic", "in", "is"),
    *("itis", "leuk", "lo", "ma", "my", "ne", "o", "om", "os", "path", "pha", "ren", "ro"),
    *("scler", "ta", "the", "tom", "u"),
)
_WORDS = 300_000
_CHUNK = 50_000
_NAMES_OF_CONCEPTS = (1, 1, 2, 6)  # 2.5 on average, as in UMLS


def invented_concepts(count: int) -> Iterator[Concept]:
    """Invent concepts of one, two or six names of two to six words.

    Words follow Zipf's law, so that the commonest stands in a fifth of the names. A synonym
    differs from the preferred name in one word.

    Args:
        count: How many; they have 2.5 times as many names. A longer list begins with a shorter one.

    Yields:
        The concepts.
    """
    words, cumulative = _vocabulary()
    for start in range(0, count, _CHUNK):
        rng = np.random.default_rng((0, start))
        sizes = rng.permuted(np.tile(_NAMES_OF_CONCEPTS, (_CHUNK // 4, 1)), axis=1).ravel()
        lengths = rng.integers(2, 7, _CHUNK)
        drawn = np.searchsorted(cumulative, rng.random((_CHUNK, 12)))  # 6 words, 6 replacements
        places = rng.integers(0, 60, (_CHUNK, 6))
        rows = zip(sizes.tolist(), lengths.tolist(), drawn.tolist(), places.tolist(), strict=True)
        for number, (size, length, row, where) in enumerate(rows, start):
            if number == count:
                return
            own = [words[i] for i in row[:length]]
            names = [" ".join(own)]
            for i in range(1, size):
                place = where[i] % length
                names.append(" ".join([*own[:place], words[row[6 + i]], *own[place + 1 :]]))
            yield Concept(f"C{number:07d}", names[0], tuple(names[1:]))


def invented_queries(count: int, concepts: int) -> list[str]:
    """Invent what texts may call such concepts: names of which every second lacks a word.

    Args:
        count: How many.
        concepts: How many concepts the ontology has; they are drawn from its beginning.
    """
    rng = np.random.default_rng((0, 1, count))
    queries = []
    for number, concept in enumerate(invented_concepts(min(concepts, 2 * count))):
        words = concept.names[rng.integers(len(concept.names))].split()
        if number % 2:
            del words[rng.integers(len(words))]
        queries.append(" ".join(words))
    return list(dict.fromkeys(rng.permutation(queries).tolist()))[:count]


def _vocabulary() -> tuple[list[str], np.ndarray]:
    """Invent words, the commonest first, and their cumulative frequency."""
    rng = np.random.default_rng(0)
    words: dict[str, None] = {}
    while len(words) < _WORDS:
        for row in rng.integers(0, len(_SYLLABLES), (_WORDS, 5)).tolist():
            words.setdefault("".join(_SYLLABLES[i] for i in row[: 2 + row[0] % 4]))
    frequencies = 1 / np.arange(3, _WORDS + 3)
    return list(words)[:_WORDS], np.cumsum(frequencies) / frequencies.sum()
