"""What a candidate-ranking example is, and the records it is made of."""

from __future__ import annotations

from dataclasses import dataclass

import datasets

from ..errors import DataError
from .problems import refuse_text

__all__ = ["FEATURES", "Concept", "Mention"]

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "document": datasets.Value("string"),
        "mention": datasets.Value("string"),
        "left": datasets.Value("string"),
        "right": datasets.Value("string"),
        "candidate_ids": datasets.List(datasets.Value("string")),
        "candidate_names": datasets.List(datasets.Value("string")),
        "label": datasets.Value("int32"),
        "same_name": datasets.List(datasets.Value("int32")),
        "gold_rank": datasets.Value("int32"),
        "num_retrieved": datasets.Value("int32"),
    }
)
"""One example: a mention between its left and right context, the candidates (an id and a name
each) and ``label``, the index of the gold candidate. A ranker sees no more than these. Beside them
stand ``same_name``, the indices of candidates whose name another one has too, so that nothing can
tell them apart; ``gold_rank``, the place of the gold among what retrieval found, from 0, or -1
where retrieval missed it and it was put in; and ``num_retrieved``, how many candidates retrieval
found (others fill the list up at random)."""


@dataclass(frozen=True, slots=True)
class Concept:
    """An entry of an ontology.

    Args:
        id: The ontology's identifier, for example ``"D003000"``.
        name: The preferred name, the one a ranker is shown.
        synonyms: Other names; retrieval searches them, a ranker is not shown them.
        types: Semantic types, for example ``("Disease or Syndrome",)``.
        alternatives: Other identifiers that lead to it, retired ones too.

    Raises:
        DataError: Identifier or name is no text, or a text stands for a list.
    """

    id: str
    name: str
    synonyms: tuple[str, ...] = ()
    types: tuple[str, ...] = ()
    alternatives: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not (isinstance(self.id, str) and isinstance(self.name, str)):
            raise DataError(f"concept {self.id!r} is called {self.name!r}; give two strings")
        for what in ("synonyms", "types", "alternatives"):
            refuse_text(f"{what} of concept {self.id!r}", getattr(self, what))

    @property
    def names(self) -> tuple[str, ...]:
        """The preferred name, then the synonyms."""
        return (self.name, *self.synonyms)


@dataclass(frozen=True, slots=True)
class Mention:
    """A span of text that refers to a concept.

    Args:
        document: Identifier of the document; no document may stand in two splits.
        text: The span itself.
        left: Text before the span (any length; builders cut it to the context width).
        right: Text after the span.
        concept: Identifier of the gold concept.
        key: What tells the mention from the others of its document, for example its offsets;
            empty: its number in the document.
        where: File and line it was read from, ``"path:number"``, for messages.
    """

    document: str
    text: str
    left: str
    right: str
    concept: str
    key: str = ""
    where: str = ""
