"""Any corpus in PubTator format."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from ...errors import DataError
from ..formats.lines import read_lines
from ..formats.pubtator import Annotation, PubtatorDocument, read_pubtator
from ..problems import Problems
from ..schema import Mention
from .builder import CandidateRankingBuilder
from .config import SPLITS, RankingConfig
from .counts import SplitCounts

__all__ = ["ID_LISTS", "Pubtator", "PubtatorConfig", "read_ids"]

ID_LISTS = tuple(f"{split}_ids" for split in SPLITS)
"""The keys of the files that list the documents of each split."""

_NO_CONCEPT = frozenset({"", "-", "-1"})
_SEPARATORS = str.maketrans(",;+", "|||")


@dataclass
class PubtatorConfig(RankingConfig):
    """How a PubTator corpus becomes ranking examples; ``retrieval`` is ``"tfidf"`` by default.

    Args:
        types: Keep only the mentions with one of these semantic types, as the file writes them
            (``("T047", "T191")``, ``("Disease",)``); by default all.
        prefix: What the file writes before each identifier and the ontology does not, for
            example ``"MESH:"``.
    """

    retrieval: str = "tfidf"
    types: tuple[str, ...] | None = None
    prefix: str = ""

    def check(self) -> None:
        """Check the values.

        Raises:
            DataError: A value is out of its range.
        """
        super().check()
        if isinstance(self.types, str) or (self.types is not None and not self.types):
            raise DataError(f"types is {self.types!r}; give a list of semantic types, or none")


def read_ids(path: str | Path, problems: Problems | None = None) -> dict[str, str]:
    """Read a list of document identifiers, one a line.

    Args:
        path: The file, gzipped or not.
        problems: Told of lines that are not one new identifier; by default they raise.

    Returns:
        The identifiers in the file's order, each with its file and line, ``"path:number"``.

    Raises:
        DataError: The file is missing, or ``problems`` raises.
    """
    problems = problems or Problems()
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


class Pubtator(CandidateRankingBuilder):
    """A corpus in PubTator format, for example BC5CDR, NCBI Disease, NLM-Chem or BioRED.

    Mentions with no concept (``-1``, ``-`` or nothing), composite mentions (several identifiers
    with one of ``| , ; +`` between them), spans marked more than once for several concepts, and
    mentions of other ``types`` than those asked for are dropped and counted. Mentions that overlap
    are kept and counted as a remark, as are the relation lines that are passed over, by kind.

    ``data_files``: ``ontology``, and either ``train``, ``validation`` and ``test``, or one file
    ``corpus`` with ``train_ids``, ``validation_ids`` and ``test_ids`` (see :func:`read_ids`).
    Mentions of a document of ``corpus`` that is in no list are dropped and counted, and what is
    malformed in ``corpus`` is counted, with the split ``train``.
    """

    BUILDER_CONFIG_CLASS = PubtatorConfig
    FILES: ClassVar[tuple[str, ...]] = ("ontology",)
    OPTIONAL_FILES: ClassVar[tuple[str, ...]] = (*SPLITS, "corpus", *ID_LISTS)

    config: PubtatorConfig

    def _check_file_keys(self, data_files: Mapping[str, Any]) -> None:
        super()._check_file_keys(data_files)
        if set(data_files) - {"ontology"} not in ({*SPLITS}, {"corpus", *ID_LISTS}):
            raise DataError(
                f"{type(self).__name__} was given the files {', '.join(data_files)}; pass ontology "
                f"with either {', '.join(SPLITS)} or corpus, {', '.join(ID_LISTS)}"
            )

    def _mentions(self, split: str, counts: SplitCounts, problems: Problems) -> Iterator[Mention]:
        read = self._listed if "corpus" in self.files else self._own
        for document in read(split, counts, problems):
            for kind in document.relations:
                counts.remark(f"{kind} relation passed over")
            linked = self._linked(document.annotations, counts)
            overlapping = _overlapping(linked)
            text = document.text
            for span in linked:
                if span.where in overlapping:
                    counts.remark("overlaps another mention")
                yield Mention(
                    document=document.id,
                    text=span.text,
                    left=text[: span.start],
                    right=text[span.end :],
                    concept=span.concept,
                    key=f"{span.start}-{span.end}",
                    where=span.where,
                )

    def _own(
        self, split: str, counts: SplitCounts, problems: Problems
    ) -> Iterator[PubtatorDocument]:
        """Read the documents of a split out of its own file."""
        return read_pubtator(self._file(split), problems)

    def _listed(
        self, split: str, counts: SplitCounts, problems: Problems
    ) -> Iterator[PubtatorDocument]:
        """Read the documents of a split out of the corpus, which is read for each split anew."""
        first = split == SPLITS[0]
        told = Problems("count")  # counted elsewhere, or it would have raised there
        lists = {
            own: read_ids(self._file(f"{own}_ids"), problems if own == split else told)
            for own in SPLITS
        }
        wanted, listed = dict(lists[split]), set().union(*lists.values())
        for document in read_pubtator(self._file("corpus"), problems if first else told):
            if wanted.pop(document.id, None):
                yield document
            elif first and document.id not in listed:
                for _ in document.annotations:
                    counts.drop("document in no list")
        for id_, where in wanted.items():
            message = f"document {id_!r} is not in the corpus; correct or remove the line"
            problems("listed document not in the corpus", where, message)

    def _linked(self, spans: Sequence[Annotation], counts: SplitCounts) -> list[Annotation]:
        """Return the spans with one gold concept, which alone is then their ``concept``."""
        types = self.config.types
        linked = []
        concepts: dict[tuple[int, int], set[str]] = defaultdict(set)
        for span in spans:
            parts = span.concept.translate(_SEPARATORS).split("|")
            ids = {part.strip().removeprefix(self.config.prefix) for part in parts}
            if types is not None and not set(types).intersection(span.types):
                counts.drop("semantic type not asked for")
            elif ids <= _NO_CONCEPT:
                counts.drop("no concept")
            elif len(ids) > 1:
                counts.drop("composite mention")
            else:
                concept = ids.pop()
                concepts[span.start, span.end].add(concept)
                linked.append(replace(span, concept=concept))
        unique = [span for span in linked if len(concepts[span.start, span.end]) == 1]
        for _ in range(len(linked) - len(unique)):
            counts.drop("span marked for several concepts")
        return unique


def _overlapping(spans: Sequence[Annotation]) -> set[str]:
    """Find the spans that share a character with another one; returns where they were read."""
    found: set[str] = set()
    furthest: Annotation | None = None  # of the spans so far, the one that reaches furthest
    for span in sorted(spans, key=lambda span: span.start):
        if furthest and span.start < furthest.end:
            found |= {span.where, furthest.where}
        if furthest is None or span.end > furthest.end:
            furthest = span
    return found
