"""MedNorm: phrases of patients and drug labels, mapped to MedDRA and SNOMED CT."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from ..formats.documents import Document, Span
from ..formats.tables import read_table
from ..licenses import CORPUS_LICENSES
from ..problems import Problems
from .config import RankingConfig, one_of
from .documents import DocumentCorpus

__all__ = ["MedNorm", "MedNormConfig"]

_CODES = {"meddra": "single_mapped_meddra_codes", "snomed": "single_mapped_sct_ids"}
_COLUMNS = ("original_dataset", "instance_id", "phrase")
# A span of a file, "LIPITOR.122.ann_TT4", or of a numbered sentence, "PMC123_4.ann_T1"; the ids of
# the other data sets are a row's own.
_SPAN = re.compile(r"(?P<document>.+?)(?:_(?=[0-9]+\.ann_)|\.ann_)(?P<key>.+)")


def _read_mednorm(path: str | Path, vocabulary: str, problems: Problems) -> Iterator[Document]:
    """Read each row's phrase, mapped to the codes of ``"meddra"`` or ``"snomed"``."""
    columns = (*_COLUMNS, _CODES[vocabulary])
    for where, row in read_table(path, columns, problems, quotes=True):
        dataset, instance, phrase, codes = (row[column] for column in columns)
        if not (dataset and instance) or not all(map(str.isdecimal, codes.split())):
            message = f"row {instance!r} of {dataset!r} has code {codes!r}; correct or remove it"
            problems("row without an id, or code not a number", where, message)
            continue
        match = _SPAN.fullmatch(instance)
        key = match["key"] if match else "phrase"
        span = Span(((0, len(phrase)),), phrase, tuple(codes.split()), where, key)
        yield Document(f"{dataset}:{match['document'] if match else instance}", phrase, [span])


@dataclass
class MedNormConfig(RankingConfig):
    """How MedNorm becomes ranking examples.

    Args:
        vocabulary: Whose codes are the concepts: ``"meddra"`` or ``"snomed"``.
    """

    vocabulary: str = "meddra"

    @override
    def check(self) -> None:
        super().check()
        one_of("vocabulary", self.vocabulary, _CODES)


class MedNorm(DocumentCorpus):
    """MedNorm (Belousov et al. 2019), the 27,979 rows of ``mednorm_full.tsv``.

    The release (doi:10.17632/b9x7xxb9sz.1) merges CADEC, TwADR-L, TwiMed, SMM4H 2017 and TAC 2017
    ADR and maps each phrase to both vocabularies; the concept is the one code that it settles on
    (``single_mapped_...``). It holds the phrases alone, so that mentions have no context, and no
    names of codes: they come from ``ontology`` and from the train phrases.

    Rows of CADEC and TwiMed are split by post, tweet or article; the other rows do not tell their
    document and are split one by one. The release has 10,572 distinct phrases: many a test phrase
    stands in train too.

    ``data_files``: ``mentions`` and, optionally, ``ontology`` (identifiers are MedDRA codes or
    SNOMED CT ids). Of the columns of ``mentions`` are read ``original_dataset``, ``instance_id``,
    ``phrase`` and ``single_mapped_meddra_codes`` or ``single_mapped_sct_ids``.
    """

    LICENSE = CORPUS_LICENSES["mednorm"]
    BUILDER_CONFIG_CLASS = MedNormConfig
    FILES = ("mentions",)

    config: MedNormConfig

    def _all_documents(self, problems: Problems) -> Iterator[Document]:
        return _read_mednorm(self._file("mentions"), self.config.vocabulary, problems)
