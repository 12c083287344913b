"""MedMentions: PubMed abstracts, linked to UMLS."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..formats.lines import read_lines
from ..licenses import License
from ..problems import Problems
from ..schema import Mention
from .builder import CandidateRankingBuilder
from .config import RankingConfig, stable_fraction
from .counts import SplitCounts
from .pubtator import ID_LISTS, Pubtator, PubtatorConfig

__all__ = [
    "MedMentions",
    "MedMentionsConfig",
    "MedMentionsLines",
    "MedMentionsLinesConfig",
    "read_mentions",
]

_FIELDS = ("doc", "mention", "cui", "left", "right")
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can write half of a pair, which is no text
_VALIDATION_SHARE = 0.10


_LICENSE = License(
    name="CC0 1.0",
    url="https://creativecommons.org/publicdomain/zero/1.0/",
    redistributable=True,
    citation="Mohan & Li (2019), AKBC",
    id="cc0-1.0",
)


@dataclass
class MedMentionsConfig(PubtatorConfig):
    """How MedMentions becomes ranking examples: as the paper has it, 9 candidates and the gold."""

    prefix: str = "UMLS:"


class MedMentions(Pubtator):
    """The official release of MedMentions (Mohan & Li 2019), full or ST21pv.

    The full release and ST21pv are the same format, and ``types`` takes semantic types as the
    corpus file writes them: ``("T047",)`` is every disease or syndrome of the full one, whose
    mentions may have several types. A type does not stand for those below it in the hierarchy.

    ``data_files``: ``corpus`` (``corpus_pubtator.txt``, gzipped or not), ``train_ids``,
    ``validation_ids`` and ``test_ids`` (``corpus_pubtator_pmids_{trng,dev,test}.txt``, the same
    for both) and ``ontology`` (see :class:`RankingConfig`).
    """

    LICENSE = _LICENSE
    BUILDER_CONFIG_CLASS = MedMentionsConfig
    FILES = ("corpus", *ID_LISTS, "ontology")
    OPTIONAL_FILES = ()


def read_mentions(path: str | Path, problems: Problems | None = None) -> Iterator[Mention]:
    """Read mentions from JSON lines with the fields ``doc, mention, cui, left, right``.

    Args:
        path: The file, gzipped or not.
        problems: Told of lines that are not an object with these fields as strings, the first
            three not empty; by default they raise.

    Yields:
        The mentions, in the file's order.

    Raises:
        DataError: The file is missing, or ``problems`` raises.
    """
    problems = problems or Problems()
    for number, line in read_lines(path, problems):
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            message = f"not JSON ({error}); correct or remove the line"
            problems("line is not JSON", where, message)
            continue
        fields = record if isinstance(record, dict) else {}
        values = [fields[name] for name in _FIELDS if _is_text(fields.get(name))]
        if len(values) != len(_FIELDS) or not all(values[:3]):
            message = (
                f"expected an object with the strings {', '.join(_FIELDS)}, the first three not "
                "empty; correct or remove the line"
            )
            problems("line is not a mention", where, message)
            continue
        document, text, concept, left, right = values
        yield Mention(document, text, left, right, concept, key=f"line{number}", where=where)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not _SURROGATE.search(value)


@dataclass
class MedMentionsLinesConfig(RankingConfig):
    """How one-mention-a-line MedMentions becomes ranking examples: 9 candidates and the gold."""

    retrieval: str = "tfidf"


class MedMentionsLines(CandidateRankingBuilder):
    """MedMentions ST21pv as one mention a line, without the licensed names of UMLS.

    A stable hash of the document's identifier carves 10 % of the train documents out as the
    validation split; the test split is its own file. What is malformed in the train file is
    counted with the split ``train``.

    A concept is named by an open vocabulary (its first name there is the preferred one) and by
    the surface forms of the train split, the most frequent of which is the preferred name where
    the vocabulary has none. Mentions of a concept with no name at all are dropped and counted
    as not in the ontology.

    ``data_files``: ``train`` and ``test`` (see :func:`read_mentions`) and ``ontology`` (see
    :class:`RankingConfig`).
    """

    LICENSE = _LICENSE
    BUILDER_CONFIG_CLASS = MedMentionsLinesConfig
    FILES = ("train", "test", "ontology")

    def _mentions(self, split: str, counts: SplitCounts, problems: Problems) -> Iterator[Mention]:
        if split == "test":
            yield from read_mentions(self._file("test"), problems)
            return
        told = problems if split == "train" else Problems("count")  # counted there already
        for mention in read_mentions(self._file("train"), told):
            held_out = stable_fraction(mention.document) < _VALIDATION_SHARE
            if held_out == (split == "validation"):
                yield mention
