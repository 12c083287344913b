"""Documents in and out of files: JSON lines, PubTator or brat, by the name of the file."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from ...errors import DataError
from ...files import refuse_blocked, replace_directory, replace_file
from ..problems import Problems
from .brat import brat_documents, brat_text
from .documents import Document, cannot_write
from .notes import json_note, read_json_notes
from .pubtator import pubtator_text, read_pubtator

__all__ = [
    "FORMATS",
    "check_place",
    "format_of",
    "read_documents",
    "refuse_inputs",
    "write_documents",
]

FORMATS = ("jsonl", "pubtator", "brat")
"""JSON lines, a note each; PubTator; a folder of brat's ``.txt`` and ``.ann`` files."""

_SUFFIXES = {".jsonl": "jsonl", ".json": "jsonl", ".pubtator": "pubtator", ".txt": "pubtator"}


def format_of(path: Path, option: str = "--format") -> str:
    """Tell a file's format by its name; a folder, or a name without a suffix, is brat's.

    Args:
        path: The file, gzipped or not, or the folder.
        option: What says it on the command line.

    Raises:
        DataError: The suffix is of no format.
    """
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if path.is_dir() or not suffix:
        return "brat"
    if suffix.lower() not in _SUFFIXES:
        known = ", ".join(_SUFFIXES)
        raise DataError(
            f"{path}: the suffix is none of {known}; give {option} {', '.join(FORMATS)}"
        )
    return _SUFFIXES[suffix.lower()]


def read_documents(
    path: str | Path, form: str | None = None, problems: Problems | None = None
) -> Iterator[Document]:
    """Read documents and the spans marked in them, coded or not.

    Args:
        path: A file, gzipped or not, or a folder of brat's.
        form: One of ``FORMATS``; by default :func:`format_of` tells.
        problems: Told of malformed records; by default they raise.

    Yields:
        The documents, in the file's order.

    Raises:
        DataError: The file is missing or of no known format, or ``problems`` raises.
    """
    path = Path(path)
    form = form or format_of(path)
    if not path.exists() or (form == "brat") != path.is_dir():
        kind = "folder" if form == "brat" else "file"
        raise DataError(f"{path}: no such {kind}; the format {form} is a {kind}")
    if form == "brat":
        files = [file for file in path.iterdir() if file.suffix in (".ann", ".txt")]
        if not files:
            raise DataError(f"{path}: a folder without .ann and .txt files; give one of brat's")
        return brat_documents(files, problems)
    if form == "jsonl":
        return read_json_notes([path], problems, coded=False)
    return read_pubtator(path, problems)


def refuse_inputs(output: Path, inputs: Iterable[str | Path | None]) -> None:
    """Refuse to write over what is read, perhaps the only right answers that there are.

    Args:
        output: Where to write.
        inputs: What is read, if it is a file or a folder.

    Raises:
        DataError: They are one.
    """
    for path in inputs:
        if path is not None and output.exists() and Path(path).exists() and output.samefile(path):
            raise DataError(f"{output} is read too, and would be lost; write to another file")


def check_place(path: Path, form: str | None = None) -> str:
    """Make sure that documents can be written somewhere, before hours of work end without it.

    Args:
        path: The file, or for brat a folder that is not there yet.
        form: One of ``FORMATS``; by default :func:`format_of` tells.

    Returns:
        The format.

    Raises:
        DataError: Its suffix is of no format, or something else is there.
    """
    form = form or format_of(path, "--output_format")
    refuse_blocked(path if form == "brat" else path.parent)
    if form == "brat" and path.exists() and any(path.iterdir()):
        raise DataError(f"{path} exists and is not empty; choose another folder")
    if form != "brat" and path.is_dir():
        raise DataError(f"{path} is a folder, and the format {form} is a file; choose another name")
    return form


def write_documents(
    documents: Iterable[Document], path: str | Path, form: str | None = None
) -> None:
    """Write documents, all or nothing: what stood there before stays until all are written.

    Args:
        documents: The documents; they are taken one at a time.
        path: The file, gzipped if it ends in ``.gz``, or for brat a folder that is not there yet.
        form: One of ``FORMATS``; by default :func:`format_of` tells.

    Raises:
        DataError: The format cannot say something exactly, or the file cannot be there.
    """
    path = Path(path)
    form = check_place(path, form)
    if form == "brat":
        with replace_directory(path) as folder:
            for document in documents:
                _write_brat(document, folder)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        replace_file(path) as partial,
        (gzip.open if path.suffix == ".gz" else open)(partial, "wb") as file,
    ):
        for document in documents:
            if form == "jsonl":
                text = json.dumps(json_note(document), ensure_ascii=False, allow_nan=False) + "\n"
            else:
                text = pubtator_text(document)
            file.write(_encoded(document, form, text))


def _write_brat(document: Document, folder: Path) -> None:
    text = folder / f"{document.id}.txt"
    if text.parent != folder or text.stem != document.id or "\0" in document.id or text.exists():
        raise cannot_write(document, "brat", "its id is no file name, or another one's")
    text.write_bytes(_encoded(document, "brat", document.text))
    text.with_suffix(".ann").write_bytes(_encoded(document, "brat", brat_text(document)))


def _encoded(document: Document, form: str, text: str) -> bytes:
    if document.source and form != "jsonl":
        raise cannot_write(document, form, "it is a part of another document")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"document {document.id[:80]!r} cannot be written: it holds half of a surrogate pair, "
            "which no file of text can; correct its text"
        ) from None
