"""Clinical notes with spans coded in ICD-10-CM, in the forms in which hospitals have them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from typing_extensions import override

from ...errors import DataError
from ..concepts import icd10_code
from ..formats.brat import brat_documents
from ..formats.documents import Document
from ..formats.notes import read_json_notes, read_note_texts, read_table_notes
from ..licenses import CORPUS_LICENSES
from ..problems import Problems
from .config import SPLITS, RankingConfig, one_of
from .documents import DocumentCorpus

__all__ = ["BRAT_CODES", "FORMS", "ClinicalNotes", "ClinicalNotesConfig", "CodedNotes"]

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

    @override
    def check(self) -> None:
        super().check()
        one_of("form", self.form, FORMS)
        one_of("brat_code", self.brat_code, BRAT_CODES)


class CodedNotes(DocumentCorpus):
    """Notes whose concepts are codes of ICD-10, in capitals and without a dot."""

    NO_CONCEPT = "no code"
    SEVERAL = AMBIGUOUS = "several codes"
    SPACES = re.compile(r"\s+")

    @override
    def _canonical(self, id_: str) -> str:
        return icd10_code(id_)


class ClinicalNotes(CodedNotes):
    """Notes with spans coded in ICD-10-CM, for example one's own dictated notes.

    The notes come in a file or folder for each split, or as one set, which is then split by note.
    A code may be written with or without its dot, in small letters or capitals.

    ``data_files``: ``ontology`` (see :class:`RankingConfig`); ``train``, ``validation`` and
    ``test``, or else ``notes``; and ``texts`` for the form ``"table"`` (:func:`read_note_texts`).
    """

    LICENSE = CORPUS_LICENSES["clinical_notes"]
    FILES = ("ontology",)
    OPTIONAL_FILES = (*SPLITS, "notes", "texts")
    EITHER = (SPLITS, ("notes",))
    BUILDER_CONFIG_CLASS = ClinicalNotesConfig

    config: ClinicalNotesConfig

    def _documents(self, split: str, problems: Problems) -> Iterable[Document]:
        first, one_set = split == SPLITS[0], "notes" in self.files
        form, texts = self.config.form, self._paths("texts")
        if (form == "table") != bool(texts):
            raise DataError(
                f"form {form!r} and {len(texts)} files 'texts'; give texts to the form 'table' only"
            )
        if one_set and not first:
            return ()
        paths = self._paths("notes" if one_set else split)
        if form == "jsonl":
            return read_json_notes(paths, problems)
        if form == "table":
            # The texts of all splits are read for each, and reported on once.
            known = read_note_texts(texts, problems if first else Problems("count"))
            return read_table_notes(paths, known, problems)
        return map(self._from_brat, brat_documents(paths, problems))

    def _from_brat(self, document: Document) -> Document:
        """Take the code of each span from where brat's files have it."""
        source = {"normalization": "concepts", "note": "notes", "label": "types"}
        field = source[self.config.brat_code]
        document.spans = [
            replace(span, concepts=getattr(span, field), key="") for span in document.spans
        ]
        return document
