"""Any corpus in PubTator format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from typing_extensions import override

from ...errors import DataError
from ..formats.documents import Document, Span
from ..formats.lines import read_lines
from ..formats.pubtator import read_pubtator
from ..problems import Problems
from .config import SPLITS, RankingConfig
from .consistency import splits_by_document
from .documents import DocumentCorpus

__all__ = ["ID_LISTS", "Pubtator", "PubtatorConfig"]

ID_LISTS = tuple(f"{split}_ids" for split in SPLITS)
"""The keys of the files that list the documents of each split."""


@dataclass
class PubtatorConfig(RankingConfig):
    """How a PubTator corpus becomes ranking examples; ``retrieval`` is ``"tfidf"`` by default.

    Args:
        types: Keep only the mentions with one of these semantic types, as the file writes them
            (``("T047", "T191")``, ``("Disease",)``); by default all.
        prefix: What the file writes before each identifier and the ontology does not, where it is
            none of those that are left out in any case (``"MESH:"``, ``"OMIM:"``, ``"UMLS:"``).
    """

    retrieval: str = "tfidf"
    types: tuple[str, ...] | None = None
    prefix: str = ""

    @override
    def check(self) -> None:
        super().check()
        if isinstance(self.types, str) or (self.types is not None and not self.types):
            raise DataError(f"types is {self.types!r}; give a list of semantic types, or none")


def _read_ids(path: str | Path, problems: Problems) -> dict[str, str]:
    """Read identifiers of documents, one a line, each with its file and line."""
    ids: dict[str, str] = {}
    for number, line in read_lines(path, problems):
        where = f"{path}:{number}"
        words = line.split()
        if len(words) > 1:
            message = f"expected one identifier, got {line[:80]!r}; put each on a line of its own"
            problems("line is not one identifier", where, message)
        elif words and words[0] in ids:
            message = f"document {words[0]!r} is listed twice; remove the repeated line"
            problems("document listed twice", where, message)
        elif words:
            ids[words[0]] = where
    return ids


class Pubtator(DocumentCorpus):
    """A corpus in PubTator format, for example BC5CDR, NCBI Disease, NLM-Chem or BioRED.

    Mentions of no concept, composite ones, spans marked more than once for several concepts, and
    mentions of other ``types`` than those asked for are dropped and counted. Mentions that overlap
    are kept and counted as a remark, as are the relation lines that are passed over, by kind.

    ``data_files``: ``ontology``, and either ``train``, ``validation`` and ``test``, or one file
    ``corpus`` with ``train_ids``, ``validation_ids`` and ``test_ids`` (an identifier a line).
    Mentions of a document of ``corpus`` that is in no list are dropped and counted, and what is
    malformed in ``corpus`` is counted, with the split ``train``.
    """

    BUILDER_CONFIG_CLASS = PubtatorConfig
    FILES: ClassVar[tuple[str, ...]] = ("ontology",)
    OPTIONAL_FILES: ClassVar[tuple[str, ...]] = (*SPLITS, "corpus", *ID_LISTS)
    EITHER = (SPLITS, ("corpus", *ID_LISTS))
    SEVERAL = "composite mention"
    AMBIGUOUS = "span marked for several concepts"
    OVERLAPPING = "overlaps another mention"

    config: PubtatorConfig

    def _refusal(self, span: Span) -> str:
        types = self.config.types
        asked_for = types is None or not set(types).isdisjoint(span.types)
        return "" if asked_for else "semantic type not asked for"

    def _documents(self, split: str, problems: Problems) -> Iterator[Document]:
        if "corpus" in self.files:
            documents: Iterable[Document] = self._listed(split, problems)
        else:
            documents = read_pubtator(self._file(split), problems)
        prefix = self.config.prefix
        for document in documents:
            document.spans = [
                replace(span, concepts=tuple(id_.removeprefix(prefix) for id_ in span.concepts))
                for span in document.spans
            ]
            yield document

    def _listed(self, split: str, problems: Problems) -> Iterator[Document]:
        """Read the corpus with the first split, and say which documents of a list it lacks."""
        own = _read_ids(self._file(f"{split}_ids"), problems)
        if split == SPLITS[0]:
            lists = {split: own}
            for other in SPLITS[1:]:  # what is wrong in them is told in their turn
                lists[other] = _read_ids(self._file(f"{other}_ids"), Problems("count"))
            self._missing = splits_by_document(lists)
            for document in read_pubtator(self._file("corpus"), problems):
                document.split = self._missing.pop(document.id, "")
                if not document.split:
                    document.split, document.unusable = split, "document in no list"
                    document.remarks.clear()
                yield document
        for id_, where in own.items():
            if id_ in self._missing:
                message = f"document {id_!r} is not in the corpus; correct or remove the line"
                problems("listed document not in the corpus", where, message)
