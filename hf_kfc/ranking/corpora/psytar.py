"""PsyTAR: patients' reviews of psychiatric drugs, mapped to UMLS."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import DataError
from ..formats.documents import Document, Span
from ..formats.tables import read_table
from ..licenses import CORPUS_LICENSES
from ..problems import Problems
from .documents import DocumentCorpus

__all__ = ["PsyTar"]

_COLUMNS = ("review", "mention", "cuis", "cui_names", "sentence")
_SHEETS = ("ADR_Mapped", "WD-Mapped", "SSI_Mapped", "DI_Mapped")
_SENTENCES = "Sentence_Labeling"
# The second title differs from sheet to sheet ("sentence_id"), the third one is the sheet's own.
_MAPPED_TITLES = {1: "drug_id", 4: "UMLS1", 6: "UMLS2"}
_SENTENCE_TITLES = {2: "drug_id", 3: "sentence_index", 4: "sentences"}
_CONCEPT = re.compile(r"(?P<cui>C[0-9]{7})[\s/\]]+(?P<name>[^/]*[^/\s])\s*(?:/.*)?", re.I | re.S)


def _read_psytar(path: str | Path, problems: Problems) -> Iterator[Document]:
    """Read each mention of the table in its sentence."""
    for where, row in read_table(path, _COLUMNS, problems):
        ids, names = row["cuis"].split("|"), row["cui_names"].split("|")
        if not all((*ids, *names)) or len(ids) != len(names):
            message = (
                f"concepts {row['cuis']!r} and names {row['cui_names']!r} do not pair up; give one "
                "name to each concept"
            )
            problems("concepts and names do not pair up", where, message)
            continue
        key = f"line{where.rpartition(':')[2]}"
        concepts = list(zip(ids, names, strict=True))
        yield _sentence(row["review"], row["mention"], row["sentence"], concepts, key, where)


def _read_psytar_workbook(path: str | Path, problems: Problems) -> Iterator[Document]:
    """Read each mention of the workbook in its sentence, sheet by sheet."""
    workbook = _open_workbook(path)
    sentences: dict[tuple[Any, Any], str] = {}
    for _, row in _rows(workbook, path, _SENTENCES, _SENTENCE_TITLES):
        # The release has two sentences of one number; both are what the number stands for.
        place = (row[2], row[3])
        sentences[place] = " ".join(filter(None, (sentences.get(place), _words(row[4]))))
    for sheet in _SHEETS:
        for number, row in _rows(workbook, path, sheet, _MAPPED_TITLES):
            where = f"{path}:{sheet}:{number}"
            review, mention = _words(row[1]), _words(row[3])
            if not review or not mention:
                message = "row without a review (drug_id) or a mention; complete or remove it"
                problems("row without review or mention", where, message)
                continue
            concepts = _cell_concepts((row[4], row[6]), where, problems)
            if concepts is not None:
                sentence = sentences.get((row[1], row[2]), "")
                yield _sentence(review, mention, sentence, concepts, f"{sheet}:{number}", where)


def _open_workbook(path: str | Path) -> dict[str, list[tuple[Any, ...]]]:
    """Read the sheets that matter, as rows of cells."""
    try:
        import openpyxl  # noqa: PLC0415  # an optional dependency
    except ImportError as error:
        raise DataError(f"{path}: a workbook needs openpyxl; install hf_kfc[ranking]") from error
    try:
        with Path(path).open("rb") as file:
            workbook = openpyxl.load_workbook(file, read_only=True, data_only=True)
            return {
                sheet.title.strip(): list(sheet.iter_rows(values_only=True))
                for sheet in workbook.worksheets
                if sheet.title.strip() in (*_SHEETS, _SENTENCES)
            }
    except Exception as error:  # openpyxl has no error of its own: damage shows as any of many
        raise DataError(f"{path}: not a readable workbook ({error!r}); fetch it again") from error


def _rows(
    workbook: dict[str, list[tuple[Any, ...]]],
    path: str | Path,
    sheet: str,
    titles: dict[int, str],
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Yield the rows below a sheet's titles that are not empty, with their numbers."""
    # Rows end at their last cell: one width for all.
    width = max(titles) + 1
    padded = [(*row, *[None] * (width - len(row))) for row in workbook.get(sheet) or [()]]
    header, *rows = padded
    if any(header[column] != title for column, title in titles.items()):
        raise DataError(f"{path}: no sheet {sheet!r} with {', '.join(titles.values())}; add it")
    for number, row in enumerate(rows, start=2):
        if any(cell is not None for cell in row):
            yield number, row


def _words(cell: Any) -> str:
    return "" if cell is None else " ".join(str(cell).split())


def _cell_concepts(
    cells: tuple[Any, Any], where: str, problems: Problems
) -> list[tuple[str, str]] | None:
    """Read ``CUI / name / type`` of two cells; other words ("No code") stand for no concept."""
    concepts = {}
    for cell in map(_words, cells):
        match = _CONCEPT.fullmatch(cell)
        if match:
            concepts[match["cui"].upper()] = match["name"]
        elif re.match("C[0-9]", cell, re.IGNORECASE):
            message = f"{cell[:80]!r} is not 'CUI / name / type'; correct the cell"
            problems("cell is not 'CUI / name / type'", where, message)
            return None
    return list(concepts.items())


def _sentence(
    review: str,
    mention: str,
    sentence: str,
    concepts: Sequence[tuple[str, str]],
    key: str,
    where: str,
) -> Document:
    found = _find(mention, sentence)
    pieces = (found or (len(sentence), len(sentence)),)
    remarks = () if found else ("mention not found in its sentence",)
    ids, names = zip(*concepts, strict=True) if concepts else ((), ())
    span = Span(pieces, mention, ids, where, key, names=names, remarks=remarks)
    return Document(review, sentence, [span])


def _find(mention: str, sentence: str) -> tuple[int, int] | None:
    """Find a mention without regard to case, as whole words if possible."""
    literal = re.escape(mention.strip())
    for pattern in (rf"(?<!\w){literal}(?!\w)", literal):
        match = re.search(pattern, sentence, re.IGNORECASE)
        if match:
            return match.span()
    return None


class PsyTar(DocumentCorpus):
    """PsyTAR (Zolnoori et al. 2019), split by review.

    Concepts are UMLS CUIs, under the names that the annotations give them. A tenth of the
    mentions is mapped to two concepts.

    Some mentions are put together from several pieces of their sentence and do not occur in it
    as such: they keep the whole sentence as left context, and are counted as a remark.

    Three rows of the release's workbook are malformed (one without a review, two with a CUI of
    six digits): read it with ``on_error="count"``.

    ``data_files``: ``mentions``, the workbook ``PsyTAR_dataset.xlsx`` (read are ``ADR_Mapped``,
    ``WD-Mapped``, ``SSI_Mapped``, ``DI_Mapped``, and the sentences of ``Sentence_Labeling``) or
    these sheets as one tab-separated table with the columns ``review``, ``mention``, ``cuis``,
    ``cui_names`` (both joined by ``|``) and ``sentence``; and, optionally, ``ontology``.
    """

    LICENSE = CORPUS_LICENSES["psytar"]
    FILES = ("mentions",)

    def _all_documents(self, problems: Problems) -> Iterator[Document]:
        path = self._file("mentions")
        # By content and not by suffix: the download cache of `datasets` renames files.
        with Path(path).open("rb") as file:
            zipped = file.read(2) == b"PK"
        return (_read_psytar_workbook if zipped else _read_psytar)(path, problems)
