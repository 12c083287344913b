"""Reading the text files of corpora and ontologies, plain or gzipped."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from ..errors import DataError

__all__ = ["read_lines", "read_names"]

_GZIP_MAGIC = b"\x1f\x8b"


def _open_text(path: Path) -> IO[str]:
    # By content and not by suffix: the download cache of `datasets` renames files.
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP_MAGIC
    if compressed:
        return cast("IO[str]", gzip.open(path, "rt", encoding="utf-8", newline="\n"))
    return path.open(encoding="utf-8", newline="\n")


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Read the lines of a UTF-8 text file, gzipped or not.

    Args:
        path: The file.

    Yields:
        The line's number, from 1, and the line without its end (``\\n`` or ``\\r\\n``).

    Raises:
        DataError: The file is missing, is a damaged gzip file or is not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path or fetch the corpus")
    number = 0
    try:
        with _open_text(path) as file:
            for number, line in enumerate(file, start=1):
                yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 after line {number}; convert the file") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}: damaged gzip data after line {number}; fetch the file again"
        ) from error


def read_names(path: str | Path) -> dict[str, list[str]]:
    """Read a vocabulary of lines ``id<TAB>name``; a concept may have several lines.

    Args:
        path: The file, gzipped or not.

    Returns:
        The names of each concept, both in the file's order.

    Raises:
        DataError: A line does not hold exactly an id and a name, or the file holds no line.
    """
    names: dict[str, list[str]] = {}
    for number, line in read_lines(path):
        fields = [field.strip() for field in line.split("\t")]
        if len(fields) != 2 or not all(fields):
            raise DataError(
                f"{path}:{number}: expected 'id<TAB>name', got {line[:80]!r}; correct or remove "
                "the line"
            )
        names.setdefault(fields[0], []).append(fields[1])
    if not names:
        raise DataError(f"{path}: the vocabulary is empty; fetch the file again")
    return names
