"""Safetensors files: what describes one, and reading it only if it is as described."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from reprlib import repr as short
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import PriorError

__all__ = ["checksum_of", "describe", "read_tensors"]


def describe(path: Path) -> dict[str, Any]:
    """Return a file's size, SHA-256 and tensor names.

    Args:
        path: A safetensors file.

    Raises:
        PriorError: It is not one.
    """
    try:
        with safe_open(path, "pt") as file:
            names = sorted(file.keys())
    except (OSError, SafetensorError) as error:
        raise _unreadable(path.name, error) from None
    return {**checksum_of(path), "tensors": names}


def checksum_of(path: Path) -> dict[str, Any]:
    """Return a file's size and SHA-256.

    Args:
        path: The file.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def read_tensors(
    path: Path, expected: Mapping[str, Any], wanted: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Read a file's tensors, after its size, its SHA-256 and the names in its header.

    Args:
        path: The file.
        expected: As :func:`describe` made it; untrusted.
        wanted: The names of the tensors to be read; None reads all.

    Raises:
        PriorError: The file is missing or not as described.
    """
    if not path.is_file():
        raise PriorError(f"file {path.name} is missing")
    try:
        for key, value in checksum_of(path).items():
            if value != (due := expected.get(key)):
                raise PriorError(
                    f"file {path.name} is damaged ({key} {short(value)}, expected {short(due)})"
                )
        with safe_open(path, "pt") as file:
            names = sorted(file.keys())
            if names != (due := expected.get("tensors")):
                raise PriorError(
                    f"file {path.name} has tensors {short(names)}, expected {short(due)}"
                )
            return {
                name: file.get_tensor(name) for name in names if wanted is None or name in wanted
            }
    except (OSError, SafetensorError, RuntimeError, TypeError) as error:  # the last two: shapes
        raise _unreadable(path.name, error) from None


def _unreadable(name: str, error: Exception) -> PriorError:
    return PriorError(f"file {name} is not readable ({str(error).partition(chr(10))[0]})")
