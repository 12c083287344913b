"""What all readers of corpora give: documents, and the spans that are marked in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from ...errors import DataError
from ..problems import Problems

__all__ = [
    "Candidate",
    "Document",
    "Pieces",
    "Span",
    "cannot_write",
    "pieces_text",
    "same_words",
    "span_text",
]

Pieces: TypeAlias = tuple[tuple[int, int], ...]
"""Start and end (exclusive) of each piece of a span, in characters."""


class Candidate(NamedTuple):
    """A concept that a linker took into account.

    Args:
        id: Its identifier.
        name: What it is called.
        probability: That it is meant.
    """

    id: str
    name: str
    probability: float


@dataclass(frozen=True, slots=True)
class Span:
    """A marked span of a text.

    Args:
        pieces: Start and end of each of its pieces; what is before the first and after the last
            is its context.
        text: Its words; as a rule the pieces as they stand in the text, joined by spaces.
        concepts: The identifiers that it is mapped to, as the file writes them, marks for "no
            concept" included; none where it has none.
        where: File and line, ``"path:number"``.
        key: What tells it from the others of its document; empty: its offsets do.
        types: Its types, as the file writes them.
        names: What the corpus's vocabulary calls each concept, if it says so (else empty).
        notes: What annotators wrote on it.
        remarks: What is unusual about it, in words that are the same for all such spans.
        probability: That its concept is right, where a linker chose it.
        candidates: What the linker chose from, the most probable first.
    """

    pieces: Pieces
    text: str
    concepts: tuple[str, ...] = ()
    where: str = ""
    key: str = ""
    types: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    probability: float | None = None
    candidates: tuple[Candidate, ...] = ()


@dataclass(slots=True)
class Document:
    """A text, or a part of one, and the spans marked in it.

    Args:
        id: The document's identifier; parts of one document share it.
        text: What offsets count in.
        spans: The spans, in the file's order.
        split: The split that it belongs to, where the reader knows.
        remarks: What was passed over in it, each in words that are the same for all such things.
        unusable: Why none of its spans can be used; empty: they can.
        title: How many characters its title has, where one space parts it from an abstract.
        source: The document that it is a part of, where it has an identifier of its own.
    """

    id: str
    text: str
    spans: list[Span] = field(default_factory=list)
    split: str = ""
    remarks: list[str] = field(default_factory=list)
    unusable: str = ""
    title: int | None = field(default=None, compare=False)
    source: str = ""


def pieces_text(text: str, pieces: Pieces) -> str:
    """Join what stands at the pieces of a span by spaces.

    Args:
        text: The whole text.
        pieces: The pieces, each inside of it.
    """
    return " ".join(text[start:end] for start, end in pieces)


def same_words(one: str, other: str) -> bool:
    """Whether two texts are equal but for their white space (line ends in spans become spaces).

    Args:
        one: A text.
        other: The other one.
    """
    return one.split() == other.split()


def span_text(
    text: str, pieces: Pieces, where: str, problems: Problems, written: str | None = None
) -> str | None:
    """Find the text of a span, and check the span.

    Args:
        text: The whole text.
        pieces: The pieces of the span.
        where: File and line of the span, for messages.
        problems: Told of a piece that is empty or reaches outside of the text, and of a span
            whose text is another one than its annotation says.
        written: What the annotation says the text is, if it does.

    Returns:
        The pieces joined by spaces, or ``None`` for a span with a problem.

    Raises:
        DataError: ``problems`` raises.
    """
    outside = [piece for piece in pieces if not 0 <= piece[0] < piece[1] <= len(text)]
    if outside:
        start, end = outside[0]
        message = (
            f"offsets {start} to {end} are not a piece of the text, which has {len(text)} "
            "characters; correct the offsets or the text"
        )
        problems("offset outside the text", where, message)
        return None
    found = pieces_text(text, pieces)
    if written is not None and not same_words(written, found):
        message = (
            f"mention {written[:80]!r} is not the text at {_listed(pieces)}, which is "
            f"{found[:80]!r}; correct the offsets, which count characters, or the mention"
        )
        problems("mention differs from the text", where, message)
        return None
    return found


def cannot_write(document: Document, form: str, reason: str) -> DataError:
    """Make the error of a writer whose format has no way to say something.

    Args:
        document: What was to be written.
        form: The format's name.
        reason: What it cannot say.
    """
    return DataError(
        f"document {document.id[:80]!r} cannot be written in the format {form}: {reason}; write "
        "JSON lines (--output NAME.jsonl)"
    )


def _listed(pieces: Sequence[tuple[int, int]]) -> str:
    return ";".join(f"{start} {end}" for start, end in pieces)
