"""UMLS: the Metathesaurus files ``MRCONSO.RRF`` (names), ``MRSTY.RRF`` (types), ``MRCUI.RRF``."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from ...errors import DataError
from ..concepts import concept_from_names, leading_to
from ..formats.lines import read_lines, watch_lines
from ..problems import Problems, refuse_text
from ..schema import Concept

__all__ = ["read_umls"]

_MRCONSO, _MRSTY, _MRCUI = "MRCONSO.RRF", "MRSTY.RRF", "MRCUI.RRF"
# Each field ends with a bar, so that a row cut short anywhere is found out.
_ROWS = {
    # CUI LAT TS LUI STT SUI ISPREF AUI SAUI SCUI SDUI SAB TTY CODE STR SRL SUPPRESS CVF
    _MRCONSO: re.compile(r"C[A-Z]?[0-9]+\|[A-Z]{3}\|(?:[^|]*\|){16}"),
    # CUI TUI STN STY ATUI CVF
    _MRSTY: re.compile(r"C[A-Z]?[0-9]+\|T[0-9]+\|(?:[^|]*\|){4}"),
    # CUI1 VER REL RELA MAPREASON CUI2 MAPIN
    _MRCUI: re.compile(r"C[A-Z]?[0-9]+\|[0-9]{4}[A-Z]{2}\|[A-Z]+\|(?:[^|]*\|){4}"),
}
_SUPPRESS = frozenset("NOEY")


class _Name(NamedTuple):
    """A name of a concept, and its rank among them: the lowest is the preferred one."""

    cui: str
    rank: tuple[int, bool, bool, bool]
    text: str
    code: str


class _Type(NamedTuple):
    cui: str
    text: str


def read_umls(
    *paths: str | Path,
    problems: Problems | None = None,
    languages: Sequence[str] = ("ENG",),
    sources: Sequence[str] | None = None,
    suppressed: bool = False,
    ids: str = "cui",
) -> Iterator[Concept]:
    """Read the concepts of the UMLS Metathesaurus in one pass, one concept in memory at a time.

    The preferred name is the one that UMLS prefers (TS=P, STT=PF, ISPREF=Y). Where the filters
    have taken it out, names are compared by these three in turn, then by their order in the file;
    names in a language that is given earlier go first. Concepts without a name that passes the
    filters are left out. A retired CUI is an alternative one of the concept that it was made one
    with (``SY``), be it through others.

    Args:
        *paths: ``MRCONSO.RRF``, or its parts in their order, and optionally ``MRSTY.RRF`` (semantic
            types) and ``MRCUI.RRF`` (retired CUIs), gzipped or not. They are told apart by the
            form of their rows.
        problems: Told of malformed rows; by default they raise.
        languages: Languages whose names to keep (``LAT``).
        sources: Vocabularies whose names to keep (``SAB``); by default all.
        suppressed: Whether to keep names that are obsolete or suppressed (``SUPPRESS`` is O, E
            or Y).
        ids: What identifies a concept: its ``"cui"``, or its ``"code"`` in the one source given,
            for corpora linked to that vocabulary itself (then all are held in memory).

    Yields:
        The concepts, sorted by CUI; by codes, in the order of their first rows.

    Raises:
        DataError: A file is missing, is none of the three or is not sorted by CUI; a language or
            a source has no name; there are codes but not one source; or ``problems`` raises.
    """
    problems = problems or Problems()
    if ids not in ("cui", "code") or (ids == "code" and len(sources or ()) != 1):
        raise DataError(f"ids={ids!r} with sources={sources}; give 'cui', or 'code' and one source")
    files: dict[str, list[str | Path]] = {kind: [] for kind in _ROWS}
    for path in paths:
        files[_kind(path)].append(path)
    if not files[_MRCONSO]:
        raise DataError(f"{', '.join(map(str, paths))}: no names; give MRCONSO.RRF too")
    refuse_text("languages", languages)
    unseen = {*languages, *(refuse_text("sources", sources) or ())}
    retired = _retired(files[_MRCUI], problems)
    names = _names(files[_MRCONSO], problems, languages, sources, suppressed, unseen)
    # Both are sorted by CUI, so that a merge brings the rows of a concept together.
    merged = heapq.merge(names, _types(files[_MRSTY], problems), key=itemgetter(0))
    by_code: dict[str, tuple[list[_Name], dict[str, None]]] = {}
    for cui, rows in groupby(merged, itemgetter(0)):
        own = list(rows)
        named = [row for row in own if isinstance(row, _Name)]
        types = dict.fromkeys(row.text for row in own if isinstance(row, _Type))
        if ids == "cui" and named:
            yield _concept(cui, named, types, leading_to(cui, retired))
        for name in named if ids == "code" else ():
            known, known_types = by_code.setdefault(name.code, ([], {}))
            known.append(name)
            known_types.update(types)
    for code, (named, types) in by_code.items():
        yield _concept(code, named, types)
    if unseen:
        raise DataError(
            f"{', '.join(map(str, files[_MRCONSO]))}: no name of {', '.join(sorted(unseen))} "
            "passes the filters; correct languages or sources"
        )


def _concept(
    id_: str, names: Sequence[_Name], types: Iterable[str], retired: Iterable[str] = ()
) -> Concept:
    ranked = sorted(names, key=lambda name: name.rank)
    return concept_from_names(id_, (name.text for name in ranked), types, retired)


def _retired(paths: Sequence[str | Path], problems: Problems) -> dict[str, list[str]]:
    """Read the retired CUIs that each CUI stands for now."""
    retired: dict[str, list[str]] = {}
    for _, row in _rows(paths, _MRCUI, problems):
        if row[2] == "SY" and row[5]:
            retired.setdefault(row[5], []).append(row[0])
    return retired


def _names(
    paths: Sequence[str | Path],
    problems: Problems,
    languages: Sequence[str],
    sources: Sequence[str] | None,
    suppressed: bool,
    unseen: set[str],
) -> Iterator[_Name]:
    """Yield the names that pass the filters; take their languages and sources out of ``unseen``."""
    ranks = {language: rank for rank, language in enumerate(languages)}
    wanted = None if sources is None else frozenset(sources)
    for where, row in _rows(paths, _MRCONSO, problems):
        language, ts, stt, is_preferred = row[1], row[2], row[4], row[6]
        source, text, suppress = row[11], row[14].strip(), row[16]
        if not text or suppress not in _SUPPRESS:
            message = f"name {text!r}, SUPPRESS {suppress!r}; correct or remove the row"
            problems("row without a name or without N, O, E or Y in SUPPRESS", where, message)
        elif (
            language in ranks
            and (wanted is None or source in wanted)
            and (suppressed or suppress == "N")
        ):
            unseen.difference_update((language, source))
            rank = (ranks[language], ts != "P", stt != "PF", is_preferred != "Y")
            yield _Name(row[0], rank, text, row[13])


def _types(paths: Sequence[str | Path], problems: Problems) -> Iterator[_Type]:
    for where, row in _rows(paths, _MRSTY, problems):
        text = row[3].strip()
        if text:
            yield _Type(row[0], text)
        else:
            problems("row without a semantic type", where, "empty STY; correct or remove the row")


def _kind(path: str | Path) -> str:
    """Tell the files apart by content, since the download cache of `datasets` renames them."""
    # A malformed line before the first good one is reported when the rows are read.
    for _, line in read_lines(path, Problems("count")):
        for kind, pattern in _ROWS.items():
            if pattern.fullmatch(line):
                return kind
    raise DataError(f"{path}: no row of {' or '.join(_ROWS)} in it; give one of these files")


def _rows(
    paths: Sequence[str | Path], kind: str, problems: Problems
) -> Iterator[tuple[str, list[str]]]:
    """Yield the place and the fields of each row, and see to it that the rows are sorted."""
    previous = ""
    for path in paths:
        for number, line in watch_lines(Path(path), kind, problems):
            where = f"{path}:{number}"
            if not _ROWS[kind].fullmatch(line):
                message = f"not a row of {kind}: {line[:80]!r}; correct it or fetch the file again"
                problems(f"not a row of {kind}", where, message)
                continue
            row = line.split("|")
            if row[0] < previous:
                raise DataError(
                    f"{where}: {row[0]} after {previous}, but rows must be sorted by CUI; sort "
                    "the file with 'LC_ALL=C sort'"
                )
            previous = row[0]
            yield where, row
