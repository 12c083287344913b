"""What can be linked: texts with spans, notes, documents of the readers, documents of spaCy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import index
from typing import Any

from ...errors import DataError
from ..candidates import span_mention
from ..concepts import is_nil
from ..formats.documents import Document, Span, span_text
from ..problems import Problems, refuse_text
from ..schema import Mention

__all__ = ["as_document", "documents_of", "is_one", "with_answers"]


def as_document(source: Any, mentions: Iterable[Any] | None = None) -> Document:
    """Read one document and its spans.

    Args:
        source: A text, with ``mentions``; a :class:`~hf_kfc.ranking.formats.documents.Document`; a
            note ``{"text": ..., "spans": [...]}`` (or ``"mentions"``), with or without an
            ``"id"``; or a document of spaCy, whose ``ents`` are its mentions.
        mentions: Where the text has mentions: ``(start, end)`` each, or ``{"start": ..., "end":
            ...}``, which may also have ``"text"``, which is then checked, ``"code"`` or
            ``"concept"``, the right answer or a list of several; or ``{"pieces":
            [(start, end), ...]}``.

    Raises:
        DataError: It is none of these, or a mention is not in the text.
    """
    given: Any = mentions
    if isinstance(source, Document):
        document = source
        if given is None:
            given = source.spans
    elif isinstance(source, str):
        if mentions is None:
            raise DataError("a text is given without mentions; give linker(text, [(start, end)])")
        document = Document("text", source)
    elif isinstance(source, Mapping):
        document = _note(source)
        if given is None:
            given = source.get("spans", source.get("mentions"))
    elif hasattr(source, "ents") and isinstance(getattr(source, "text", None), str):
        document = Document("text", source.text)
        if given is None:
            given = [(entity.start_char, entity.end_char) for entity in source.ents]
    else:
        raise DataError(
            f"{type(source).__name__} cannot be linked; give a text with mentions, a note "
            "{'text': ..., 'spans': [...]}, or a document"
        )
    try:
        document.text.encode()
    except UnicodeError as error:
        raise DataError(f"{document.id}: its text is no Unicode ({error}); correct it") from None
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise DataError(f"{document.id}: its mentions are {given!r:.80}; give a list of spans")
    spans = [_span(document, number, span) for number, span in enumerate(given)]
    return Document(document.id, document.text, spans)


def _note(note: Mapping[str, Any]) -> Document:
    id_, text = note.get("id", "text"), note.get("text")
    if not (isinstance(id_, str) and isinstance(text, str)):
        raise DataError(f"note {id_!r:.80} has no text; give it the strings 'id' and 'text'")
    return Document(id_, text)


def _span(document: Document, number: int, given: Any) -> Span:
    """Check a span; errors say which it is."""
    where = f"{document.id}, mention {number}"
    if isinstance(given, Span):
        pieces, written, concepts = given.pieces, None, given.concepts
        words = given.text
    else:
        fields = given if isinstance(given, Mapping) else {}
        try:
            pairs = fields.get("pieces") or [
                (fields["start"], fields["end"]) if fields else tuple(given)
            ]
            pieces = tuple((index(start), index(end)) for start, end in pairs)
        except (KeyError, TypeError, ValueError):
            raise DataError(
                f"{where}: {given!r:.80} is no span; give (start, end) or {{'start': ..., 'end': "
                "...}}"
            ) from None
        written, words = fields.get("text"), ""
        code = fields.get("code", fields.get("concept"))
        several = isinstance(code, list | tuple)
        concepts = () if code is None else tuple(map(str, code if several else [code]))
    found = span_text(document.text, pieces, where, Problems(), written)
    words = words or found or ""
    if not words.strip():
        raise DataError(f"{where}: there are no words at {pieces[0]}; correct the span")
    return Span(pieces, words, concepts, where)


def is_one(source: Any) -> bool:
    """Whether what is given is one document, and not a list of them."""
    return isinstance(source, str | Document | Mapping) or hasattr(source, "ents")


def documents_of(sources: Any) -> Sequence[Document]:
    """Read a list of documents.

    Raises:
        DataError: One is no document, or has a mention that is not in its text; or they are texts,
            whose mentions nobody knows.
    """
    return [as_document(source) for source in refuse_text("documents", sources)]


def with_answers(sources: Iterable[Any]) -> Iterator[Mention]:
    """Yield the mentions whose answer is known: one concept, or none.

    Args:
        sources: Documents as :func:`as_document` reads them, whose spans carry their concepts;
            spans with several are left out. Mentions are yielded as they are.

    Yields:
        The mentions; of those without a concept, ``concept`` is empty.
    """
    for source in sources:
        if isinstance(source, Mention):
            yield source
            continue
        document = as_document(source)
        for span in document.spans:
            concepts = {"" if is_nil(id_) else id_ for id_ in span.concepts} or {""}
            if len(concepts) == 1:
                yield span_mention(document, span, concepts.pop())
