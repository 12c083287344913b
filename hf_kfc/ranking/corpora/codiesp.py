"""CodiEsp: Spanish clinical cases, coded in ICD-10."""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from typing_extensions import override

from ...errors import DataError
from ..formats.documents import Document, Pieces, pieces_text, same_words
from ..formats.lines import read_lines
from ..formats.notes import NoteTable
from ..licenses import CORPUS_LICENSES
from ..problems import Problems
from .clinical_notes import CodedNotes
from .config import SPLITS, RankingConfig, one_of

__all__ = ["LABELS", "CodiEsp", "CodiEspConfig"]

LABELS = ("DIAGNOSTICO", "PROCEDIMIENTO")
"""What is coded: diagnoses in ICD-10-CM, procedures in ICD-10-PCS."""

_PIECE = r"[0-9]{1,9} [0-9]{1,9}"
_ROW = re.compile(
    rf"(?P<note>[^\t]*)\t(?P<label>{'|'.join(LABELS)})\t(?P<code>[^\t]*\S[^\t]*)\t"
    rf"(?P<evidence>[^\t]*)\t(?P<pieces>{_PIECE}(?:;{_PIECE})*)"
)


@dataclass
class CodiEspConfig(RankingConfig):
    """How CodiEsp becomes ranking examples, with the widths of the paper's clinical notes.

    Args:
        label: Which of ``LABELS`` the mentions have.
    """

    num_candidates: int = 25
    context_words: int = 20
    retrieval: str = "tfidf"
    ontology_format: str = "icd10cm"
    label: str = "DIAGNOSTICO"

    @override
    def check(self) -> None:
        super().check()
        one_of("label", self.label, LABELS)


class CodiEsp(CodedNotes):
    """CodiEsp v4 (Miranda-Escalada et al. 2020), with the official splits.

    The notes are Spanish and the ontology's names are English: it is the evidence in the train
    notes, added to the names, by which most codes are found. Rows of the release with an empty
    piece (``1320 1320``) keep their others; where the evidence and the text at its offsets differ
    in punctuation alone, the text counts. Both are remarks.

    ``data_files``: ``train``, ``validation``, ``test`` (the files ``trainX.tsv``, ``devX.tsv`` and
    ``testX.tsv``), ``texts`` (the archive of the texts) and, optionally, ``ontology`` (see
    :class:`RankingConfig`): without one, the codes are those of the train notes.
    """

    FILES = (*SPLITS, "texts")
    BUILDER_CONFIG_CLASS = CodiEspConfig
    LICENSE = CORPUS_LICENSES["codiesp"]

    config: CodiEspConfig

    def _documents(self, split: str, problems: Problems) -> Iterable[Document]:
        # The texts of all splits are read for each of them, and reported on once.
        common = problems if split == SPLITS[0] else Problems("count")
        texts = _read_codiesp_texts(self._file("texts"), common)
        return _read_codiesp(self._file(split), texts, self.config.label, problems)


def _read_codiesp(
    path: str | Path,
    texts: Mapping[str, str],
    label: str,
    problems: Problems,
) -> Iterator[Document]:
    """Read the spans of a label out of ``trainX.tsv``, ``devX.tsv`` or ``testX.tsv``."""
    table = NoteTable(texts, problems)
    for number, line in read_lines(path, problems):
        where = f"{path}:{number}"
        row = _ROW.fullmatch(line)
        if row is None:
            message = "expected 'note, label, code, evidence, offsets' between tabs; correct it"
            problems("truncated or malformed row", where, message)
            continue
        if row["label"] != label or (text := table.text(row["note"], where)) is None:
            continue
        remarks = []
        pairs = [piece.split(" ") for piece in row["pieces"].split(";")]
        marked: Pieces = tuple((int(start), int(end)) for start, end in pairs)
        pieces = tuple((start, end) for start, end in marked if start != end)
        if pieces != marked:
            remarks.append("empty piece left out")
        written = row["evidence"]
        found = pieces_text(text, pieces)
        if not same_words(found, written) and _words(found) == _words(written):
            remarks.append("evidence differs from the text in punctuation")
            written = found
        table.add(row["note"], pieces, (row["code"],), where, written, tuple(remarks))
    yield from table.notes.values()


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _read_codiesp_texts(path: str | Path, problems: Problems) -> dict[str, str]:
    """Read the Spanish texts, by identifier, out of the archive, without unpacking it.

    Its folders ``text_files`` are read and others (the translations, which offsets do not count
    in) passed over. Of a damaged archive the rest is lost; of one that is not compressed and ends
    between two texts nothing shows that more should follow: rows then lack their texts, and are
    told of.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file; check the path or fetch the corpus")
    texts: dict[str, str] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                file = archive.extractfile(member) if name.parent.name == "text_files" else None
                if file is None:
                    continue
                where = f"{path}:{name}"
                if name.stem in texts:
                    problems("text comes twice", where, "this note comes twice; remove one of them")
                    continue
                try:
                    texts[name.stem] = file.read().decode()
                except UnicodeDecodeError:
                    problems("text is not UTF-8", where, "not UTF-8; convert the text")
    except (tarfile.TarError, OSError, EOFError, zlib.error):
        message = f"damaged, or no tar archive, after {len(texts)} texts; fetch it again"
        problems("damaged archive", str(path), message)
    return texts
