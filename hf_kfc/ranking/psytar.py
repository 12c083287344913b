"""PsyTAR: patients' reviews of psychiatric drugs, linked to UMLS."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import DataError
from .builder import CandidateRankingBuilder, stable_fraction
from .counts import SplitCounts
from .files import read_lines, read_names
from .ontology import concepts_from_names, surface_forms
from .schema import Concept, Mention

__all__ = ["PsyTar", "PsytarRow", "read_psytar"]

_HEADER = ["review", "sheet", "sentence_index", "mention", "cuis", "cui_names", "sentence"]
_TRAIN_SHARE, _VALIDATION_SHARE = 0.70, 0.15


@dataclass(frozen=True, slots=True)
class PsytarRow:
    """An annotated mention.

    Args:
        line: Number of its line in the file.
        review: Identifier of the review.
        mention: The annotated words; they need not be one piece of the sentence.
        cuis: The concepts it is mapped to.
        cui_names: The name of each of them.
        sentence: The sentence it was found in.
    """

    line: int
    review: str
    mention: str
    cuis: tuple[str, ...]
    cui_names: tuple[str, ...]
    sentence: str


def read_psytar(path: str | Path) -> Iterator[PsytarRow]:
    """Read the mapped sheets of PsyTAR as one tab-separated table with a header.

    Args:
        path: The file, gzipped or not.

    Yields:
        The rows, in the file's order.

    Raises:
        DataError: The file is missing, its header is another one, or a row is malformed.
    """
    for number, line in read_lines(path):
        fields = line.split("\t")
        if number == 1:
            if fields != _HEADER:
                raise DataError(f"{path}:1: expected the header {', '.join(_HEADER)}; add it")
            continue
        if len(fields) != len(_HEADER):
            raise DataError(
                f"{path}:{number}: expected {len(_HEADER)} fields between tabs, got "
                f"{len(fields)}; correct or remove the line"
            )
        review, _, _, mention, cuis, cui_names, sentence = fields
        row = PsytarRow(
            number, review, mention, tuple(cuis.split("|")), tuple(cui_names.split("|")), sentence
        )
        if not all((*row.cuis, *row.cui_names)) or len(row.cuis) != len(row.cui_names):
            raise DataError(
                f"{path}:{number}: concepts {cuis!r} and names {cui_names!r} do not pair up; "
                "give one name to each concept"
            )
        yield row


class PsyTar(CandidateRankingBuilder):
    """PsyTAR (Zolnoori et al. 2019), split by review.

    A stable hash of the review's identifier sends 70 % of the reviews to train, 15 % to
    validation and 15 % to test. The ontology is every concept that an annotation is mapped to,
    under the vocabulary's names for it (``cui_names``: not the patients' words), widened by the
    surface forms of the train reviews. Mentions mapped to several concepts (a tenth of the
    corpus) have no single right candidate: they are dropped and counted.

    Some mentions are put together from several pieces of their sentence and do not occur in it
    as such: they keep the whole sentence as left context, and are counted as a remark.

    ``data_files``: ``mentions`` (see :func:`read_psytar`) and, optionally, ``names`` (lines
    ``CUI<TAB>name``: more synonyms for the same concepts).
    """

    FILES = ("mentions",)
    OPTIONAL_FILES = ("names",)

    def _ontology(self) -> Sequence[Concept]:
        counters: dict[str, Counter[str]] = {}
        for row in read_psytar(self.files["mentions"]):
            for cui, name in zip(row.cuis, row.cui_names, strict=True):
                counters.setdefault(cui, Counter())[name] += 1
        names = {
            cui: [name for name, _ in counter.most_common()] for cui, counter in counters.items()
        }
        more = read_names(self.files["names"]) if "names" in self.files else {}
        forms = surface_forms(self._mentions("train", SplitCounts()))
        return concepts_from_names(
            {cui: [*known, *more.get(cui, []), *forms.get(cui, [])] for cui, known in names.items()}
        )

    def _mentions(self, split: str, counts: SplitCounts) -> Iterator[Mention]:
        for row in read_psytar(self.files["mentions"]):
            if _split_of(row.review) != split:
                continue
            if len(row.cuis) > 1:
                counts.drop("several concepts")
                continue
            span = _find(row.mention, row.sentence)
            if span is None:
                counts.remark("mention not found in its sentence")
            start, end = span or (len(row.sentence), len(row.sentence))
            yield Mention(
                document=row.review,
                text=row.mention,
                left=row.sentence[:start],
                right=row.sentence[end:],
                concept=row.cuis[0],
                key=f"line{row.line}",
            )


def _split_of(review: str) -> str:
    fraction = stable_fraction(review)
    if fraction < _TRAIN_SHARE:
        return "train"
    return "validation" if fraction < _TRAIN_SHARE + _VALIDATION_SHARE else "test"


def _find(mention: str, sentence: str) -> tuple[int, int] | None:
    """Find a mention without regard to case, as whole words if possible."""
    literal = re.escape(mention.strip())
    for pattern in (rf"(?<!\w){literal}(?!\w)", literal):
        match = re.search(pattern, sentence, re.IGNORECASE)
        if match:
            return match.span()
    return None
