"""What a ranker is shown of a mention and of a concept, in training and in linking alike."""

from __future__ import annotations

import re
from dataclasses import replace

from .formats.documents import Document, Span
from .schema import Concept, Mention

__all__ = ["LINE_ENDS", "cut_context", "shown_name", "span_mention"]

LINE_ENDS = re.compile(r"\s*[\r\n]\s*")
"""What becomes one space in the words of a mention."""


def cut_context(mention: Mention, words: int) -> Mention:
    """Cut the context of a mention to the nearest words of each side."""
    left, right = mention.left.rsplit(None, words), mention.right.split(None, words)
    return replace(
        mention,
        text=mention.text.strip(),
        left=" ".join(left[-words:] if words else []),  # [-0:] would be all of it
        right=" ".join(right[:words]),
    )


def shown_name(concept: Concept, with_types: bool) -> str:
    """Return the name by which a ranker is shown a concept; its types may follow, in brackets."""
    if not (with_types and concept.types):
        return concept.name
    return f"{concept.name} [{', '.join(concept.types)}]"


def span_mention(
    document: Document, span: Span, concept: str, spaces: re.Pattern[str] = LINE_ENDS
) -> Mention:
    """Turn a span into a mention between all that is before its first and after its last piece.

    Args:
        document: The document.
        span: One of its spans.
        concept: Identifier of what it is linked to; empty: nothing.
        spaces: What becomes one space in its words.
    """
    return Mention(
        document=document.id,
        text=spaces.sub(" ", span.text),
        left=document.text[: min(start for start, _ in span.pieces)],
        right=document.text[max(end for _, end in span.pieces) :],
        concept=concept,
        key=span.key or ";".join(f"{start}-{end}" for start, end in span.pieces),
        where=span.where,
    )
