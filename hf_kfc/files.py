"""Folders that are either whole or not there, and none that a killed process leaves for ever."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from stat import S_ISREG
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

from .errors import HfKfcError

if sys.platform != "win32":  # where a killed process's folders stay
    import fcntl

__all__ = [
    "path_of",
    "read_bounded",
    "refuse_blocked",
    "refuse_foreign",
    "replace_directory",
    "replace_file",
    "scratch_directory",
]

_SCRATCH = "hf_kfc-"
_NOT_HELD_YET = 60.0  # seconds


def path_of(given: Any, kind: type[HfKfcError] = HfKfcError) -> Path:
    """Return a path that somebody gave.

    Args:
        given: A string or a path.
        kind: Class of the error.

    Raises:
        HfKfcError: It is something else, as a number.
    """
    if not isinstance(given, str | os.PathLike):
        raise kind(f"{given!r:.80} is no folder; give the name of one")
    return Path(given)


def refuse_blocked(directory: Path) -> None:
    """Make sure that a folder can be made, before hours of work end without one.

    It is tried: what a file system allows is not told by its permissions alone.

    Args:
        directory: A folder, absent or not.

    Raises:
        HfKfcError: It, or a folder that it is to lie in, is a file, or takes no folder.
    """
    try:
        directory.resolve()
        found = (path for path in (directory, *directory.absolute().parents) if path.exists())
        existing = next(found)
    except (OSError, RuntimeError) as error:  # a name that is too long, a link to itself
        raise HfKfcError(f"{directory} cannot be made ({error}); choose another folder") from error
    if not existing.is_dir():
        raise HfKfcError(f"{existing} is not a folder; choose another folder than {directory}")
    try:
        with TemporaryDirectory(prefix=f".{_SCRATCH}", dir=existing):
            pass
    except OSError as error:
        done = "written into" if existing == directory else "made"
        raise HfKfcError(
            f"{directory} cannot be {done} ({error.strerror}); choose another folder"
        ) from error


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
    the next call for the same folder puts it back first, and removes partial ones of killed
    processes.

    Args:
        directory: What to make; an older one is replaced. Of a link, its target.

    Yields:
        The folder to write into.
    """
    directory = directory.resolve()  # also gives "." its name
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.parent / f".{directory.name}.partial-{os.getpid()}"
    _remove_abandoned(directory.parent.glob(f".{escape(directory.name)}.partial-*"))
    replaced = directory.parent / f".{directory.name}.replaced"
    _settle(directory, replaced)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    held = _hold(partial)
    try:
        yield partial
        if directory.exists():
            directory.rename(replaced)
        partial.rename(directory)
    finally:
        _settle(directory, replaced)
        shutil.rmtree(partial, ignore_errors=True)
        _release(held)


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a partial file's name beside ``path``; put it in place only if all went well.

    Args:
        path: What to make; an older one is replaced. Of a link, its target.

    Yields:
        Where to write.

    Raises:
        HfKfcError: It is a folder.
    """
    path = path.resolve()
    if path.is_dir():
        raise HfKfcError(f"{path} is a folder; give the name of a file")
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _settle(directory: Path, replaced: Path) -> None:
    """Put the older folder back if nothing took its place, otherwise remove it."""
    if replaced.exists() and not directory.exists():
        replaced.rename(directory)
    shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Yield a folder for temporary files; those that killed processes left are removed first.

    Yields:
        The folder, which is removed afterwards.
    """
    _remove_abandoned(Path(gettempdir()).glob(f"{_SCRATCH}*"))
    with TemporaryDirectory(prefix=_SCRATCH) as folder:
        held = _hold(Path(folder))
        try:
            yield Path(folder)
        finally:
            _release(held)


def _hold(folder: Path) -> int | None:
    """Lock a folder until this process ends; None if somebody has it, or it cannot be locked."""
    if sys.platform == "win32":
        return None
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        _release(handle)
        return None
    return handle


def _release(handle: int | None) -> None:
    if handle is not None:
        os.close(handle)


def _remove_abandoned(folders: Iterable[Path]) -> None:
    """Remove folders that no living process holds; one just made may not be held yet."""
    for folder in folders:
        with suppress(OSError):
            is_old = time.time() - folder.lstat().st_mtime > _NOT_HELD_YET
            if is_old and not folder.is_symlink() and (handle := _hold(folder)) is not None:
                shutil.rmtree(folder, ignore_errors=True)
                _release(handle)


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
