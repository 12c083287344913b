"""MedMentions: PubMed abstracts, linked to UMLS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..formats.documents import Document, Span
from ..formats.lines import read_json_lines
from ..licenses import CORPUS_LICENSES
from ..problems import Problems
from .config import RankingConfig, stable_fraction
from .documents import DocumentCorpus
from .pubtator import ID_LISTS, Pubtator

__all__ = ["MedMentions", "MedMentionsLines", "MedMentionsLinesConfig"]

_FIELDS = ("doc", "mention", "cui", "left", "right")
_VALIDATION_SHARE = 0.10


class MedMentions(Pubtator):
    """The official release of MedMentions (Mohan & Li 2019), full or ST21pv.

    The full release and ST21pv are the same format, and ``types`` takes semantic types as the
    corpus file writes them: ``("T047",)`` is every disease or syndrome of the full one, whose
    mentions may have several types. A type does not stand for those below it in the hierarchy.

    ``data_files``: ``corpus`` (``corpus_pubtator.txt``, gzipped or not), ``train_ids``,
    ``validation_ids`` and ``test_ids`` (``corpus_pubtator_pmids_{trng,dev,test}.txt``, the same
    for both) and ``ontology`` (see :class:`RankingConfig`).
    """

    LICENSE = CORPUS_LICENSES["medmentions"]
    FILES = ("corpus", *ID_LISTS, "ontology")
    OPTIONAL_FILES = ()


def _read_mentions(path: str | Path, problems: Problems) -> Iterator[Document]:
    """Read each mention in what its line has of its document."""
    for where, record in read_json_lines(path, problems):
        values = [value for name in _FIELDS if isinstance(value := record.get(name), str)]
        if len(values) != len(_FIELDS) or not all(values[:3]):
            message = (
                f"expected an object with the strings {', '.join(_FIELDS)}, the first three not "
                "empty; correct or remove the line"
            )
            problems("line is not a mention", where, message)
            continue
        document, text, concept, left, right = values
        pieces = ((len(left), len(left) + len(text)),)
        key = f"line{where.rpartition(':')[2]}"
        span = Span(pieces, text, (concept,), where, key)
        yield Document(document, f"{left}{text}{right}", [span])


@dataclass
class MedMentionsLinesConfig(RankingConfig):
    """How one-mention-a-line MedMentions becomes ranking examples: 9 candidates and the gold."""

    retrieval: str = "tfidf"


class MedMentionsLines(DocumentCorpus):
    """MedMentions ST21pv as one mention a line, without the licensed names of UMLS.

    A stable hash of the document's identifier carves 10 % of the train documents out as the
    validation split; the test split is its own file. What is malformed in the train file is
    counted with the split ``train``.

    A concept is named by an open vocabulary (its first name there is the preferred one) and by
    the surface forms of the train split, the most frequent of which is the preferred name where
    the vocabulary has none. Mentions of a concept with no name at all are dropped and counted
    as not in the ontology.

    ``data_files``: ``train`` and ``test`` (JSON lines with the strings ``doc, mention,
    cui, left, right``, the first three not empty) and ``ontology`` (see
    :class:`RankingConfig`).
    """

    LICENSE = CORPUS_LICENSES["medmentions"]
    BUILDER_CONFIG_CLASS = MedMentionsLinesConfig
    FILES = ("train", "test", "ontology")
    OPTIONAL_FILES = ()

    def _documents(self, split: str, problems: Problems) -> Iterator[Document]:
        for document in _read_mentions(self._file(split), problems) if split in self.FILES else ():
            held_out = split == "train" and stable_fraction(document.id) < _VALIDATION_SHARE
            document.split = "validation" if held_out else split
            yield document
