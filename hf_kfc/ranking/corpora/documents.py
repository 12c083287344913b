"""Corpora that are read as documents with marked spans: nearly all."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from ..candidates import LINE_ENDS, span_mention
from ..concepts import canonical_id, is_nil
from ..formats.documents import Document, Pieces, Span
from ..problems import Problems
from ..schema import Mention
from .builder import CandidateRankingBuilder
from .config import SPLITS, split_by_hash
from .counts import SplitCounts

__all__ = ["DocumentCorpus", "overlapping_spans"]


class DocumentCorpus(CandidateRankingBuilder):
    """Base class of corpora whose readers give :class:`Document` records.

    A subclass implements :meth:`_documents`, or :meth:`_all_documents` where all splits come from
    the same files; a document is then of the split that its reader gives it, else of the one that
    a stable hash of its identifier does: 70 % of the documents to train, 15 % to validation and
    15 % to test. Malformed records of such files are counted with the split ``train``.

    Spans mapped to no concept, or to several (in one annotation or in several of the same words),
    have no single right candidate: they are dropped and counted. A span in several pieces is
    counted as a remark: its text is the pieces, its context what is before the first and after
    the last.

    Where the corpus itself names its concepts, its names come after those of the file
    ``ontology`` and before the words of the mentions.

    Attributes:
        NO_CONCEPT: What a span without a concept is counted as.
        SEVERAL: What a span with several concepts is counted as.
        AMBIGUOUS: What a span is counted as that other annotations map to other concepts.
        OVERLAPPING: What a span that shares characters with another one is remarked as; empty: it
            is not.
        SPACES: Which white space in the words of a mention becomes one space.
    """

    OPTIONAL_FILES: ClassVar[tuple[str, ...]] = ("ontology",)
    NO_CONCEPT: ClassVar[str] = "no concept"
    SEVERAL: ClassVar[str] = "several concepts"
    AMBIGUOUS: ClassVar[str] = "several concepts"
    OVERLAPPING: ClassVar[str] = ""
    SPACES: ClassVar[re.Pattern[str]] = LINE_ENDS

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._waiting: dict[str, list[Document]] = {}  # read with another split
        self._own_names: dict[str, Counter[str]] = {}

    def _documents(self, split: str, problems: Problems) -> Iterable[Document]:
        """Read the documents of a split in the corpus's order, or those of all with the first.

        Args:
            split: One of ``SPLITS``; they come in their order.
            problems: Told of malformed records.
        """
        return self._all_documents(problems) if split == SPLITS[0] else ()

    def _all_documents(self, problems: Problems) -> Iterable[Document]:
        """Read all documents of a corpus whose splits come from the same files.

        Raises:
            NotImplementedError: A subclass has neither this nor :meth:`_documents`.
        """
        raise NotImplementedError(
            f"{type(self).__name__} reads no documents; give it _documents, or _all_documents "
            "where all splits come from the same files"
        )

    def _canonical(self, id_: str) -> str:
        """Spell an identifier in the one way of the corpus's vocabulary."""
        return canonical_id(id_)

    def _refusal(self, span: Span) -> str:
        """Say why a span is not asked for, in words for the counts; empty: it is."""
        return ""

    def _names(self, problems: Problems) -> Mapping[str, Sequence[str]]:
        return {
            id_: [name for name, _ in counter.most_common()]
            for id_, counter in self._own_names.items()
        }

    def _mentions(self, split: str, counts: SplitCounts, problems: Problems) -> Iterator[Mention]:
        if split == SPLITS[0]:
            self._waiting, self._own_names = defaultdict(list), {}
        for document in self._waiting.pop(split, []):
            yield from self._linked(document, counts)
        one_set = not {*SPLITS} <= self.files.keys()
        for document in self._documents(split, problems):
            for span in document.spans:
                for id_, name in zip(span.concepts, span.names, strict=False):
                    if name and not is_nil(id_):
                        self._own_names.setdefault(self._canonical(id_), Counter())[name] += 1
            own = document.split or (split_by_hash(document.id) if one_set else split)
            if own == split:
                yield from self._linked(document, counts)
            else:
                self._waiting[own].append(document)

    def _linked(self, document: Document, counts: SplitCounts) -> Iterator[Mention]:
        """Turn the spans with one gold concept into mentions; drop and count the others."""
        for remark in document.remarks:
            counts.remark(remark)
        linked: list[tuple[Span, str]] = []
        concepts: dict[Pieces, set[str]] = defaultdict(set)
        for span in document.spans:
            ids = {"" if is_nil(id_) else self._canonical(id_) for id_ in span.concepts}
            reason = document.unusable or self._refusal(span)
            if not reason and not any(ids):
                reason = self.NO_CONCEPT
            elif not reason and len(ids) > 1:
                reason = self.SEVERAL
            if reason:
                counts.drop(reason)
            else:
                concepts[span.pieces] |= ids
                linked.append((span, ids.pop()))
        usable = [(span, id_) for span, id_ in linked if len(concepts[span.pieces]) == 1]
        for _ in range(len(linked) - len(usable)):
            counts.drop(self.AMBIGUOUS)
        overlapping = overlapping_spans([s for s, _ in usable]) if self.OVERLAPPING else set()
        for span, id_ in usable:
            for remark in span.remarks:
                counts.remark(remark)
            if span.where in overlapping:
                counts.remark(self.OVERLAPPING)
            if len(span.pieces) > 1:
                counts.remark("discontinuous mention")
            yield span_mention(document, span, id_, self.SPACES)


def overlapping_spans(spans: Sequence[Span]) -> set[str]:
    """Return file and line of the spans of one piece that share a character with another one."""
    found: set[str] = set()
    furthest: Span | None = None  # of the spans so far, the one that reaches furthest
    for span in sorted(spans, key=lambda span: span.pieces[0][0]):
        if furthest and span.pieces[0][0] < furthest.pieces[0][1]:
            found |= {span.where, furthest.where}
        if furthest is None or span.pieces[0][1] > furthest.pieces[0][1]:
            furthest = span
    return found
