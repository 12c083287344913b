"""What corpora share that map spans to any number of concepts, and may name the concepts."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..formats.spans import Pieces
from ..ontologies.concepts import widened
from ..problems import Problems
from ..schema import Concept, Mention
from .builder import CandidateRankingBuilder
from .config import SPLITS, split_by_hash
from .counts import SplitCounts

__all__ = ["AnnotatedCorpus", "Annotation"]


@dataclass(frozen=True, slots=True)
class Annotation:
    """A span of a text and the concepts that a corpus maps it to.

    Args:
        document: Identifier of the document.
        mention: The span's words.
        text: What the span stands in: the document, or a part of it.
        pieces: Start and end of each piece of the span in the text; what is before the first and
            after the last is its context.
        concepts: Identifier of each concept and what the corpus's vocabulary calls it (empty
            where the corpus does not say).
        key: What tells it from the others of its document.
        where: File and line, ``"path:number"``.
        remark: What is unusual about it, for the counts; empty for nothing.
        split: ``"train"`` or ``"test"`` where the corpus itself is split.
    """

    document: str
    mention: str
    text: str
    pieces: Pieces
    concepts: tuple[tuple[str, str], ...]
    key: str
    where: str
    remark: str = ""
    split: str = ""


class AnnotatedCorpus(CandidateRankingBuilder):
    """Base class of corpora that are read as :class:`Annotation` records.

    Annotations mapped to no concept, or to several, have no single right candidate: they are
    dropped and counted. A span in several pieces is counted as a remark.

    A stable hash of the document's identifier sends 70 % of the documents to train, 15 % to
    validation and 15 % to test; of the train part of a corpus that is split already, 15 % become
    validation. Malformed records are counted with the train split.

    The ontology is the file ``ontology``, where given, and every concept that the corpus itself
    names, under those names: its vocabulary's, not the writers' words. The words
    of the splits in ``names_from`` come after them.
    """

    OPTIONAL_FILES = ("ontology",)

    _read_annotations: list[Annotation]

    @abstractmethod
    def _annotations(self, problems: Problems) -> Iterator[Annotation]:
        """Read all annotations in the corpus's order.

        Args:
            problems: Told of malformed records.
        """

    def _names(self, problems: Problems) -> Mapping[str, Sequence[str]]:
        """Give what the corpus itself calls concepts, the most frequent name first.

        Args:
            problems: Told of malformed records.
        """
        counters: dict[str, Counter[str]] = {}
        for annotation in self._read_annotations:
            for id_, name in annotation.concepts:
                if name:
                    counters.setdefault(id_, Counter())[name] += 1
        return {
            id_: [name for name, _ in counter.most_common()] for id_, counter in counters.items()
        }

    def _concepts(self, problems: Problems) -> Iterable[Concept]:
        return widened(super()._concepts(problems), self._names(problems))

    def _mentions(self, split: str, counts: SplitCounts, problems: Problems) -> Iterator[Mention]:
        # All splits come from the same files: one reading, so that a problem is told once.
        if split == SPLITS[0]:
            self._read_annotations = list(self._annotations(problems))
        for annotation in self._read_annotations:
            if _split_of(annotation) != split:
                continue
            if len(annotation.concepts) != 1:
                counts.drop("several concepts" if annotation.concepts else "no concept")
                continue
            if annotation.remark:
                counts.remark(annotation.remark)
            if len(annotation.pieces) > 1:
                counts.remark("discontinuous mention")
            yield Mention(
                document=annotation.document,
                text=annotation.mention,
                left=annotation.text[: min(start for start, _ in annotation.pieces)],
                right=annotation.text[max(end for _, end in annotation.pieces) :],
                concept=annotation.concepts[0][0],
                key=annotation.key,
                where=annotation.where,
            )


def _split_of(annotation: Annotation) -> str:
    if annotation.split == "test":
        return "test"
    split = split_by_hash(annotation.document)
    return "train" if annotation.split and split == "test" else split
