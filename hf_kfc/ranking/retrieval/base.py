"""What every retriever can do."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from random import Random
from typing import NamedTuple, Protocol
from unicodedata import category, combining, name, normalize

from ..ontologies import Ontology

__all__ = ["Hit", "Retriever", "filled", "folded"]


class Hit(NamedTuple):
    """A retrieved concept.

    Args:
        position: Its index in the ontology.
        score: Score of its best name: positive where it has something in common with the query,
            0.0 for a concept that only fills the list up.
    """

    position: int
    score: float


class Retriever(Protocol):
    """Finds candidate concepts for mentions.

    A concept scores as its best name. Equal scores (to 9 digits after the point) stand in the
    ontology's order, whatever the order or the batches in which queries come.
    """

    @property
    def num_names(self) -> int:
        """How many distinct names are searched."""

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Find the ``k`` best concepts for each mention.

        Where fewer than ``k`` concepts match, pseudo-random other concepts, drawn by a hash of
        the query, fill the list: a result has ``k`` entries whenever the ontology does, and is
        the same in every process.

        Args:
            queries: The mentions' texts.
            k: How many concepts to return for each.

        Returns:
            For each query at most ``k`` distinct concepts, the highest score first; the ones that
            fill up come last.
        """

    def extended(self, ontology: Ontology, changed: Collection[int]) -> Retriever:
        """Make the retriever of an ontology that says more; only what is new is read.

        Args:
            ontology: The retriever's own with more concepts after its own, in its order.
            changed: Which of its own concepts have other names now.

        Returns:
            A retriever that finds what one made of the ontology would; this one stays as it is.
        """


@cache
def _sheds_marks(letter: str) -> bool:
    """Whether a letter is the same without its accents; in other scripts marks are letters too."""
    return name(letter, "").startswith(("LATIN", "GREEK", "CYRILLIC"))


def folded(text: str) -> str:
    """Return a text in small letters without accents, so that ``"fiebre tifoidéa"`` is found.

    Letters that differ in form alone become one before their case is looked at. What stands above
    or below a letter is left out in Latin, Greek and Cyrillic; the vowels of Hindi and Thai and the
    voicing of kana stay. Characters that nobody sees (zero-width ones, soft hyphens) are left out.

    Args:
        text: Any text.
    """
    if text.isascii():
        return text.lower()
    kept, bare = [], False
    for char in normalize("NFKD", text):
        if category(char) == "Cf":
            continue
        if not combining(char):
            bare = _sheds_marks(char)
        elif bare:
            continue
        kept.append(char)
    return normalize("NFC", "".join(kept).lower())


def filled(num_concepts: int, query: str, k: int, matches: Sequence[Hit]) -> list[Hit]:
    """Fill a list of matches up with random concepts (see :meth:`Retriever.search`)."""
    if len(matches) >= k:
        return list(matches)
    taken = {hit.position for hit in matches}
    # At most len(matches) of these k are taken, so that enough of them remain.
    drawn = Random(query).sample(range(num_concepts), min(num_concepts, k))
    free = [position for position in drawn if position not in taken]
    return [*matches, *(Hit(position, 0.0) for position in free[: k - len(matches)])]
