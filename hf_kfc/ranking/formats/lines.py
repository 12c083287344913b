"""Reading text files, plain or gzipped: lines, JSON lines, whole texts."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import datasets
from tqdm.auto import tqdm

from ...errors import DataError
from ..problems import Problems

__all__ = ["read_json_lines", "read_lines", "read_text", "watch_lines"]

_GZIP_MAGIC = b"\x1f\x8b"
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)


def _open(path: Path) -> IO[bytes]:
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the path or fetch the corpus")
    # By content and not by suffix: the download cache of `datasets` renames files.
    with path.open("rb") as file:
        compressed = file.read(2) == _GZIP_MAGIC
    return cast("IO[bytes]", gzip.open(path)) if compressed else path.open("rb")


def read_lines(path: str | Path, problems: Problems | None = None) -> Iterator[tuple[int, str]]:
    """Read the lines of a UTF-8 text file, gzipped or not.

    Args:
        path: The file.
        problems: Told of a line that is not UTF-8, which is left out, and of damaged gzip data,
            which ends the file; by default they raise.

    Yields:
        The line's number, from 1, and the line without its end (``\\n`` or ``\\r\\n``) and, on the
        first one, without a byte-order mark.

    Raises:
        DataError: The file is missing, or ``problems`` raises.
    """
    path, problems = Path(path), problems or Problems()
    number = 0
    with _open(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError:
                    problems("not UTF-8", f"{path}:{number}", "not UTF-8; convert the file")
                    continue
                yield number, text.rstrip("\r\n")
        except _DAMAGED:
            message = f"damaged gzip data after line {number}; fetch the file again"
            problems("damaged gzip data", f"{path}:{number + 1}", message)


def watch_lines(path: Path, name: str, problems: Problems) -> Iterator[tuple[int, str]]:
    """Read the lines of a large file by :func:`read_lines`, behind a progress bar.

    Args:
        path: The file.
        name: What the bar calls it.
        problems: As of :func:`read_lines`.
    """
    return iter(
        tqdm(
            read_lines(path, problems),
            desc=f"reading {name}",
            unit=" lines",
            unit_scale=True,
            disable=datasets.are_progress_bars_disabled(),
        )
    )


def read_json_lines(
    path: str | Path, problems: Problems | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read objects from JSON lines.

    Args:
        path: The file, gzipped or not.
        problems: Told of lines that are not JSON; by default they raise.

    Yields:
        File and line, ``"path:number"``, and the object; an empty one for any other value.

    Raises:
        DataError: The file is missing, or ``problems`` raises.
    """
    problems = problems or Problems()
    for number, line in read_lines(path, problems):
        try:
            record = json.loads(line)
            json.dumps(record, ensure_ascii=False).encode()  # half of a surrogate pair is no text
        except (ValueError, RecursionError) as error:
            message = f"not JSON ({error}); correct or remove the line"
            problems("line is not JSON", f"{path}:{number}", message)
        else:
            yield f"{path}:{number}", record if isinstance(record, dict) else {}


def read_text(path: str | Path) -> str:
    """Read a whole UTF-8 text file, gzipped or not, with its line ends as they are.

    Offsets count in the characters of this text; a byte-order mark is one of them.

    Args:
        path: The file.

    Raises:
        DataError: The file is missing, is a damaged gzip file or is not UTF-8.
    """
    try:
        with _open(Path(path)) as file:
            return file.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}; convert the file") from error
    except _DAMAGED as error:
        raise DataError(f"{path}: damaged gzip data; fetch the file again") from error
