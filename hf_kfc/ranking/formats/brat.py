"""brat's stand-off format: ``name.txt`` is a text and ``name.ann`` the spans marked in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

from ...errors import DataError
from ..problems import Problems, refuse_text
from .documents import Document, Span, cannot_write, pieces_text, span_text
from .lines import read_lines, read_text

__all__ = ["brat_documents", "brat_text", "read_brat"]

_KEY = re.compile(r"[TNAREM]\S*[0-9]|#[0-9]*|\*")
# Offsets are found from the right: a label may hold spaces ("271782001 | Drowsy | 9 19").
_PIECE = r"[0-9]{1,9} [0-9]{1,9}"
_SPAN = re.compile(rf"(?P<label>\S.*?)\s+(?P<pieces>{_PIECE}(?:;{_PIECE})*)\s*")
_REMARK = {  # lines that say more of a span: its concept in a vocabulary, or a note on it
    "N": re.compile(r"\S+ (?P<target>\S+) [^\s:]+:(?P<id>\S+)\s*"),
    "#": re.compile(r"\S+ (?P<target>\S+)\s*"),
}
_EXPECTED = {
    "T": "T1<TAB>label start end<TAB>text",
    "N": "N1<TAB>Reference T1 resource:id<TAB>name",
    "#": "#1<TAB>AnnotatorNotes T1<TAB>note",
}


def brat_documents(
    paths: Iterable[str | Path], problems: Problems | None = None
) -> Iterator[Document]:
    """Read documents whose files may lie in any folders: a text and its spans have one name.

    Args:
        paths: ``.ann`` and ``.txt`` files; brat's own ``.conf`` files are passed over.
        problems: Told of a file that has no counterpart, shares its name with another one or is
            none of these, and of malformed records; by default they raise.

    Yields:
        The documents, sorted by name.

    Raises:
        DataError: ``problems`` raises.
    """
    problems = problems or Problems()
    files: dict[str, dict[str, Path]] = {".ann": {}, ".txt": {}}
    for path in map(Path, refuse_text("paths", paths)):
        if path.suffix == ".conf":
            continue
        if path.suffix not in files:
            message = "neither .ann nor .txt; leave it out or rename it"
            problems("file is neither .ann nor .txt", str(path), message)
        elif files[path.suffix].setdefault(path.stem, path) != path:
            message = f"another file of this name is {files[path.suffix][path.stem]}; rename one"
            problems("two files have one name", str(path), message)
    annotations, texts = files[".ann"], files[".txt"]
    for name in sorted(annotations.keys() | texts.keys()):
        if name in annotations and name in texts:
            yield read_brat(annotations[name], texts[name], problems)
        else:
            path, other = (
                (annotations[name], ".txt") if name in annotations else (texts[name], ".ann")
            )
            message = f"there is no {name}{other} to it; add it or leave this file out"
            problems("file without its counterpart", str(path), message)


def read_brat(
    ann_path: str | Path, text_path: str | Path, problems: Problems | None = None
) -> Document:
    """Read a text and the spans marked in it.

    Of a span, its label is the one of its ``types``, its ``N`` lines are the ``concepts`` (without
    the name of the resource) and its ``#`` lines the ``notes``. Relations, events and attributes
    (``R``, ``E``, ``A``, ``M``, ``*``) are passed over. The last tab of a line must be there even
    where nothing follows it: it shows that the line is whole.

    Args:
        ann_path: The annotations.
        text_path: The text.
        problems: Told of a text that cannot be read (the document is then empty) and of malformed
            lines; by default they raise.

    Returns:
        The document.

    Raises:
        DataError: The file of annotations is missing, or ``problems`` raises.
    """
    problems = problems or Problems()
    document = Document(Path(ann_path).stem, "")
    try:
        document.text = read_text(text_path)
    except DataError as error:
        message = str(error).removeprefix(f"{text_path}: ")
        problems("text cannot be read", str(text_path), message)
        return document
    keys: set[str] = set()
    spans: dict[str, Span] = {}
    remarks = []  # lines that say more of a span; they may stand before it
    for number, line in read_lines(ann_path, problems):
        if not line.strip():
            continue
        where = f"{ann_path}:{number}"
        key, *fields = line.split("\t", 2)
        if not _KEY.fullmatch(key):
            message = f"no line of brat starts with {key[:80]!r}; correct or remove the line"
            problems("line of unknown kind", where, message)
        elif key in keys and len(key) > 1:  # "*" and "#" alone are no names
            message = f"annotation {key!r} comes twice; remove or rename it"
            problems("annotation comes twice", where, message)
        elif key[0] == "T":
            if span := _read_span(where, key, fields, document.text, problems):
                spans[key] = span
        elif key[0] in "N#":
            remarks.append((where, key, fields))
        elif not any(fields):
            problems("truncated line", where, f"nothing follows {key!r}; correct the line")
        keys.add(key)
    for where, key, fields in remarks:
        _add_remark(where, key, fields, spans, keys, problems)
    document.spans = list(spans.values())
    return document


def _read_span(
    where: str, key: str, fields: list[str], text: str, problems: Problems
) -> Span | None:
    match = _SPAN.fullmatch(fields[0]) if len(fields) == 2 else None
    if match is None:
        _report_line(where, key, problems)
        return None
    offsets = [piece.split(" ") for piece in match["pieces"].split(";")]
    pieces = tuple((int(start), int(end)) for start, end in offsets)
    found = span_text(text, pieces, where, problems, written=fields[1])
    if found is None:
        return None
    return Span(pieces, found, where=where, key=key, types=(match["label"],))


def _add_remark(
    where: str,
    key: str,
    fields: list[str],
    spans: dict[str, Span],
    keys: set[str],
    problems: Problems,
) -> None:
    """Add a normalisation or note to the span that it is on."""
    match = _REMARK[key[0]].fullmatch(fields[0]) if len(fields) == 2 else None
    if match is None:
        _report_line(where, key, problems)
        return
    target = match["target"]
    span = spans.get(target)
    if target not in keys:
        message = f"{key!r} is on {target[:80]!r}, which is not there; correct or remove the line"
        problems("line on a missing annotation", where, message)
    elif span and key[0] == "N":
        spans[target] = replace(span, concepts=(*span.concepts, match["id"]))
    elif span:  # and not a relation or the like, or a span that was reported itself
        spans[target] = replace(span, notes=(*span.notes, fields[1]))


def _report_line(where: str, key: str, problems: Problems) -> None:
    message = f"expected {_EXPECTED[key[0]]!r}; correct or remove the line"
    problems("truncated or malformed line", where, message)


def brat_text(document: Document) -> str:
    """Write the spans of a document as brat does, so that :func:`read_brat` reads the same.

    A span without a type gets the label ``Mention`` and one without a key the next free one; its
    concepts are those of a resource ``Ontology``. Probabilities and candidates have no place.

    Args:
        document: The document.

    Returns:
        What the file ``.ann`` is to hold.

    Raises:
        DataError: A span has several types, or something holds what parts fields or lines.
    """
    lines: list[str] = []
    taken = {span.key for span in document.spans}
    free = (key for n in range(1, 10**9) if (key := f"T{n}") not in taken)
    remarks = 0
    for span in document.spans:
        key = span.key or next(free)
        label = span.types[0] if span.types else "Mention"
        place = f"{label} {';'.join(f'{start} {end}' for start, end in span.pieces)}"
        match = _SPAN.fullmatch(place)
        if len(span.types) > 1 or not match or match["label"] != label or "\t" in label:
            reason = f"{span.types} is not one label"
            raise cannot_write(document, "brat", reason)
        if key[0] != "T" or not _KEY.fullmatch(key):
            raise cannot_write(document, "brat", f"{key[:80]!r} is no key of a span, as T1 is")
        words = re.sub(r"[\r\n]", " ", pieces_text(document.text, span.pieces))
        lines.append(f"{key}\t{place}\t{words}")
        for id_, name in zip_longest(span.concepts, span.names[: len(span.concepts)], fillvalue=""):
            remarks += 1
            if not re.fullmatch(r"\S+", id_):
                raise cannot_write(document, "brat", f"{id_[:80]!r} is no identifier")
            lines.append(f"N{remarks}\tReference {key} Ontology:{id_}\t{name}")
        for note in span.notes:
            remarks += 1
            lines.append(f"#{remarks}\tAnnotatorNotes {key}\t{note}")
    if any(re.search(r"[\r\n]", line) for line in lines):
        raise cannot_write(document, "brat", "a name or a note has a line break")
    if len(taken - {""}) < sum(bool(span.key) for span in document.spans):
        raise cannot_write(document, "brat", "two spans have one key")
    return "".join(f"{line}\n" for line in lines)
