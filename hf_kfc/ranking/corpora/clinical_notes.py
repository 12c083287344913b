"""Clinical notes with spans coded in ICD-10-CM, in the forms in which hospitals have them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import DataError
from ..formats.brat import BratDocument, BratSpan, brat_documents
from ..formats.notes import (
    CodedSpan,
    Note,
    read_json_notes,
    read_note_texts,
    read_table_notes,
)
from ..formats.spans import Pieces
from ..licenses import License
from ..ontologies.icd10cm import normal_code
from ..problems import Problems
from ..schema import Mention
from .builder import CandidateRankingBuilder
from .config import SPLITS, RankingConfig, split_by_hash
from .counts import SplitCounts

__all__ = ["BRAT_CODES", "FORMS", "ClinicalNotes", "ClinicalNotesConfig", "note_mentions"]

FORMS = ("jsonl", "brat", "table")
"""The forms of notes with spans."""

BRAT_CODES = ("normalization", "note", "label")
"""Where brat files may have the code of a span: in an ``N`` line, in a ``#`` line, as its type."""


@dataclass
class ClinicalNotesConfig(RankingConfig):
    """How notes become ranking examples, with the paper's widths for its dictated notes.

    Args:
        form: ``"jsonl"`` (:func:`read_json_notes`), ``"brat"`` (folders of ``.ann`` and ``.txt``
            files) or ``"table"`` (:func:`read_table_notes`).
        brat_code: Where a brat file has the code: in the ``"normalization"``, ``"note"`` or
            ``"label"`` of a span.
    """

    num_candidates: int = 25
    context_words: int = 20
    ontology_format: str = "icd10cm"
    form: str = "jsonl"
    brat_code: str = "normalization"

    def check(self) -> None:
        """Check the values.

        Raises:
            DataError: A value is out of its range.
        """
        super().check()
        if self.form not in FORMS:
            raise DataError(f"form is {self.form!r}; give {' or '.join(map(repr, FORMS))}")
        if self.brat_code not in BRAT_CODES:
            raise DataError(
                f"brat_code is {self.brat_code!r}; give {' or '.join(map(repr, BRAT_CODES))}"
            )


class ClinicalNotes(CandidateRankingBuilder):
    """Notes with spans coded in ICD-10-CM, for example one's own dictated notes.

    The notes come in a file or folder for each split, or as one set: a stable hash of a note's
    identifier then sends 70 % of the notes to train, 15 % to validation and 15 % to test, and
    malformed records are counted under train, whose notes they may or may not be.

    A code may be written with or without its dot, in small letters or capitals. A span in several
    pieces is counted as a remark: its text is the pieces, its context what is before the first
    and after the last. Spans with no code or, counted together where they are marked twice, with
    several have no single right candidate: they are dropped and counted.

    ``data_files``: ``ontology`` (see :class:`RankingConfig`); ``train``, ``validation`` and
    ``test``, or else ``notes``; and ``texts`` for the form ``"table"`` (:func:`read_note_texts`).
    """

    LICENSE = License(
        name="confidential to patients",
        url="https://www.hhs.gov/hipaa/for-professionals/privacy/index.html",
        redistributable=False,
    )
    FILES = ("ontology",)
    OPTIONAL_FILES = (*SPLITS, "notes", "texts")
    BUILDER_CONFIG_CLASS = ClinicalNotesConfig

    config: ClinicalNotesConfig

    def _check_file_keys(self, data_files: Mapping[str, Any]) -> None:
        super()._check_file_keys(data_files)
        if {*data_files} & {*SPLITS, "notes"} not in ({*SPLITS}, {"notes"}):
            raise DataError(
                f"ClinicalNotes was given the files {', '.join(data_files)}; give "
                f"{', '.join(SPLITS)}, or notes alone to have them split"
            )

    def _mentions(self, split: str, counts: SplitCounts, problems: Problems) -> Iterator[Mention]:
        # What is not of one split is read for each, and reported once.
        common = problems if split == SPLITS[0] else Problems("count")
        one_set = bool(self._paths("notes"))
        key = "notes" if one_set else split
        for note in self._notes(key, common if one_set else problems, common):
            if not one_set or split_by_hash(note.id) == split:
                yield from note_mentions(note, counts)

    def _notes(self, key: str, problems: Problems, common: Problems) -> Iterator[Note]:
        form, paths, texts = self.config.form, self._paths(key), self._paths("texts")
        if (form == "table") != bool(texts):
            raise DataError(
                f"form {form!r} and {len(texts)} files 'texts'; give texts to the form 'table' only"
            )
        if form == "jsonl":
            return read_json_notes(paths, problems)
        if form == "table":
            return read_table_notes(paths, read_note_texts(texts, common), problems)
        return (
            _from_brat(document, self.config.brat_code)
            for document in brat_documents(paths, problems)
        )


def note_mentions(note: Note, counts: SplitCounts) -> Iterator[Mention]:
    """Turn the spans of a note into mentions of ICD-10 codes.

    Args:
        note: The note.
        counts: Told of the spans that are dropped, and of what is unusual about the others.

    Yields:
        The mentions of one code each, in the order of the spans.
    """
    codes: dict[Pieces, set[str]] = defaultdict(set)
    for span in note.spans:
        codes[span.pieces].update(map(normal_code, span.codes))
    for span in note.spans:
        if len(codes[span.pieces]) != 1:
            counts.drop("several codes" if codes[span.pieces] else "no code")
            continue
        for remark in span.remarks:
            counts.remark(remark)
        if len(span.pieces) > 1:
            counts.remark("discontinuous mention")
        (code,) = codes[span.pieces]
        yield Mention(
            document=note.id,
            text=" ".join(span.text.split()),
            left=note.text[: min(start for start, _ in span.pieces)],
            right=note.text[max(end for _, end in span.pieces) :],
            concept=code,
            key=";".join(f"{start}-{end}" for start, end in span.pieces),
            where=span.where,
        )


def _from_brat(document: BratDocument, source: str) -> Note:
    spans = [
        CodedSpan(span.pieces, span.text, _brat_codes(span, source), span.where)
        for span in document.spans
    ]
    return Note(document.id, document.text, spans)


def _brat_codes(span: BratSpan, source: str) -> tuple[str, ...]:
    if source == "normalization":
        return tuple(id_ for _, id_ in span.normalizations)
    if source == "note":
        return tuple(note.strip() for note in span.notes if note.strip())
    return (span.label,)
