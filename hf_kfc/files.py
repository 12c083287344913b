"""Folders that are either whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from stat import S_ISREG

from .errors import HfKfcError

__all__ = ["read_bounded", "refuse_blocked", "refuse_foreign", "replace_directory"]


def refuse_blocked(directory: Path) -> None:
    """Make sure that a folder can be made, before hours of work end without one.

    Args:
        directory: A folder, absent or not.

    Raises:
        HfKfcError: It, or a folder that it is to lie in, is a file.
    """
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise HfKfcError(f"{existing} is not a folder; choose another folder than {directory}")


def refuse_foreign(directory: Path, marker: str) -> None:
    """Make sure that a folder may be replaced.

    Args:
        directory: Absent, empty, or an older result of ours.
        marker: Path, inside of it, of a file that tells an older result.

    Raises:
        HfKfcError: The folder holds something else, or cannot be made.
    """
    refuse_blocked(directory)
    if directory.exists() and any(directory.iterdir()) and not (directory / marker).is_file():
        raise HfKfcError(f"{directory} exists and has no {marker}; choose another folder")


@contextmanager
def replace_directory(directory: Path) -> Iterator[Path]:
    """Yield a partial folder beside ``directory``; put it in place only if all went well.

    A process killed between the two renames leaves the older folder under ``.<name>.replaced``;
    the next call for the same folder puts it back first.

    Args:
        directory: What to make; an older one is replaced. Of a link, its target.

    Yields:
        The folder to write into.
    """
    directory = directory.resolve()  # also gives "." its name
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.parent / f".{directory.name}.partial-{os.getpid()}"
    replaced = directory.parent / f".{directory.name}.replaced"
    _settle(directory, replaced)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if directory.exists():
            directory.rename(replaced)
        partial.rename(directory)
    finally:
        _settle(directory, replaced)
        shutil.rmtree(partial, ignore_errors=True)


def _settle(directory: Path, replaced: Path) -> None:
    """Put the older folder back if nothing took its place, otherwise remove it."""
    if replaced.exists() and not directory.exists():
        replaced.rename(directory)
    shutil.rmtree(replaced, ignore_errors=True)


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a file that somebody else may have put there.

    Args:
        path: The file.
        limit: The most bytes that it may have.

    Raises:
        HfKfcError: It is too large, or no regular file: a pipe or a device never ends.
        OSError: It is not there, or cannot be read.
    """
    status = path.stat()  # of a link, its target
    if not S_ISREG(status.st_mode):
        raise HfKfcError(f"{path} is no regular file")
    if status.st_size > limit:
        raise HfKfcError(f"{path} has {status.st_size} bytes, expected at most {limit}")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise HfKfcError(f"{path} has more than {limit} bytes")
    return content
