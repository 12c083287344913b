"""CodiEsp: Spanish clinical cases, coded in ICD-10."""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...errors import DataError
from ..formats.lines import read_lines
from ..formats.notes import CodedSpan, Note
from ..formats.spans import Pieces, pieces_text, same_words, span_text
from ..licenses import License
from ..problems import Problems
from ..schema import Mention
from .builder import CandidateRankingBuilder
from .clinical_notes import note_mentions
from .config import SPLITS, RankingConfig
from .counts import SplitCounts

__all__ = ["LABELS", "CodiEsp", "CodiEspConfig", "read_codiesp", "read_codiesp_texts"]

LABELS = ("DIAGNOSTICO", "PROCEDIMIENTO")
"""What is coded: diagnoses in ICD-10-CM, procedures in ICD-10-PCS."""

_FIELDS = 5
_PIECE = r"[0-9]{1,9} [0-9]{1,9}"
_PIECES = re.compile(rf"{_PIECE}(?:;{_PIECE})*")


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

    def check(self) -> None:
        """Check the values.

        Raises:
            DataError: A value is out of its range.
        """
        super().check()
        if self.label not in LABELS:
            raise DataError(f"label is {self.label!r}; give {' or '.join(map(repr, LABELS))}")


class CodiEsp(CandidateRankingBuilder):
    """CodiEsp v4 (Miranda-Escalada et al. 2020), with the official splits.

    The notes are Spanish and the ontology's names are English: it is the evidence in the train
    notes, added to the names, by which most codes are found. A span with several codes has no
    single right candidate: it is dropped and counted. See :func:`read_codiesp` for what is put
    right in the release.

    ``data_files``: ``train``, ``validation``, ``test`` (the files ``trainX.tsv``, ``devX.tsv`` and
    ``testX.tsv``), ``texts`` (the archive of the texts) and, optionally, ``ontology`` (see
    :class:`RankingConfig`): without one, the codes are those of the train notes.
    """

    FILES = (*SPLITS, "texts")
    OPTIONAL_FILES = ("ontology",)
    BUILDER_CONFIG_CLASS = CodiEspConfig
    LICENSE = License(
        name="Creative Commons Attribution 4.0",
        url="https://creativecommons.org/licenses/by/4.0/",
        redistributable=True,
        citation="Miranda-Escalada et al. (2020), CLEF eHealth, doi:10.5281/zenodo.3837305",
        id="cc-by-4.0",
    )

    config: CodiEspConfig

    def _mentions(self, split: str, counts: SplitCounts, problems: Problems) -> Iterator[Mention]:
        # The texts of all splits are read for each of them, and reported on once.
        common = problems if split == SPLITS[0] else Problems("count")
        texts = read_codiesp_texts(self._file("texts"), common)
        for note in read_codiesp(self._file(split), texts, self.config.label, problems):
            yield from note_mentions(note, counts)


def read_codiesp(
    path: str | Path,
    texts: Mapping[str, str],
    label: str = "DIAGNOSTICO",
    problems: Problems | None = None,
) -> Iterator[Note]:
    """Read the spans of a file ``trainX.tsv``, ``devX.tsv`` or ``testX.tsv``.

    Some rows of the release have an empty piece (``1320 1320``), and in some the evidence and the
    text at its offsets differ in punctuation alone. Such a span keeps its other pieces and the
    text at its offsets, and says so in its remarks.

    Args:
        path: The file.
        texts: The text of each note by its identifier (see :func:`read_codiesp_texts`).
        label: Which spans to read, one of ``LABELS``; the others are passed over.
        problems: Told of malformed rows, each left out; by default they raise.

    Yields:
        The notes that have such spans, in the order of their first rows.

    Raises:
        DataError: The file is missing, or ``problems`` raises.
    """
    problems = problems or Problems()
    notes: dict[str, Note] = {}
    for number, line in read_lines(path, problems):
        where = f"{path}:{number}"
        fields = line.split("\t")
        if (
            len(fields) != _FIELDS
            or fields[1] not in LABELS
            or not fields[2].strip()
            or not _PIECES.fullmatch(fields[4])
        ):
            message = "expected 'note, label, code, evidence, offsets' between tabs; correct it"
            problems("truncated or malformed row", where, message)
            continue
        id_, its_label, code, evidence, offsets = fields
        if its_label != label:
            continue
        if id_ not in texts:
            message = f"there is no text of note {id_[:80]!r}; add it or remove the row"
            problems("note without text", where, message)
            continue
        note = notes.setdefault(id_, Note(id_, texts[id_]))
        if span := _read_span(where, code, evidence, offsets, note.text, problems):
            note.spans.append(span)
    yield from notes.values()


def _read_span(
    where: str, code: str, evidence: str, offsets: str, text: str, problems: Problems
) -> CodedSpan | None:
    remarks = []
    pairs = [piece.split(" ") for piece in offsets.split(";")]
    marked: Pieces = tuple((int(start), int(end)) for start, end in pairs)
    pieces = tuple((start, end) for start, end in marked if start != end)
    if pieces != marked:
        remarks.append("empty piece left out")
    written = evidence
    found = pieces_text(text, pieces)
    if not same_words(found, evidence) and _words(found) == _words(evidence):
        remarks.append("evidence differs from the text in punctuation")
        written = found
    checked = span_text(text, pieces, where, problems, written)
    return None if checked is None else CodedSpan(pieces, checked, (code,), where, tuple(remarks))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def read_codiesp_texts(path: str | Path, problems: Problems | None = None) -> dict[str, str]:
    """Read the Spanish texts out of the archive, without unpacking it.

    Args:
        path: A tar archive, compressed or not, with the folders ``text_files``; others (the
            translations, which offsets do not count in) are passed over.
        problems: Told of a text that is not UTF-8 or comes twice, and of a damaged archive, of
            which the rest is then lost; by default they raise. Of an archive that is not
            compressed and ends between two texts nothing shows that more should follow: the rows
            of :func:`read_codiesp` then lack their texts, and are told of.

    Returns:
        The texts by identifier.

    Raises:
        DataError: The file is missing, or ``problems`` raises.
    """
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file; check the path or fetch the corpus")
    problems = problems or Problems()
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
