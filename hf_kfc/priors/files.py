"""The files of a prior: safetensors and JSON, written whole or not at all, checked on reading."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import PriorError

__all__ = ["CONFIG_NAME", "FORMAT", "FORMAT_VERSION", "read_prior_files", "write_prior_files"]

CONFIG_NAME = "config.json"
FORMAT = "hf_kfc.prior"
FORMAT_VERSION = 1
_PATTERN = "prior{suffix}.safetensors"


def write_prior_files(
    directory: Path, config: Mapping[str, Any], tensors: dict[str, Tensor], max_shard_size: str
) -> None:
    """Write a prior's folder under another name, then move it into place.

    Args:
        directory: The folder to make; an older prior there is replaced.
        config: JSON values; format, version and the files' checksums are added.
        tensors: By name; no two may share memory.
        max_shard_size: Size above which the tensors are split into several files.

    Raises:
        PriorError: The folder holds something other than a prior.
    """
    if directory.exists() and any(directory.iterdir()) and not _is_prior(directory):
        raise PriorError(f"{directory} exists and is not a prior; choose another folder")
    with _moved_into(directory) as partial:
        save_torch_state_dict(
            tensors, partial, filename_pattern=_PATTERN, max_shard_size=max_shard_size
        )
        files = {path.name: _describe(path) for path in sorted(partial.glob("*.safetensors"))}
        header = {"format": FORMAT, "format_version": FORMAT_VERSION}
        text = json.dumps({**header, **config, "files": files}, indent=2, ensure_ascii=False)
        (partial / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")


def read_prior_files(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a prior's folder.

    Args:
        directory: As made by :func:`write_prior_files`.

    Returns:
        The configuration and the tensors by name.

    Raises:
        PriorError: A file is missing, damaged, or of an unknown format; all are listed.
    """
    config = _read_config(directory / CONFIG_NAME)
    problems: list[str] = []
    tensors: dict[str, Tensor] = {}
    for name, expected in config["files"].items():
        path = directory / name
        if Path(name).name != name or not path.is_file():
            problems.append(f"file {name} is missing")
            continue
        found = _describe(path)
        if found != expected:
            what = "size" if found["bytes"] != expected.get("bytes") else "checksum"
            problems.append(
                f"file {name} is damaged ({what} {found[_KEY[what]]}, expected "
                f"{expected.get(_KEY[what])})"
            )
            continue
        try:
            tensors |= load_file(path)
        except SafetensorError as error:
            problems.append(f"file {name} is not readable ({error})")
    if problems:
        raise PriorError(f"prior at {directory} cannot be loaded: {'; '.join(problems)}")
    return config, tensors


_KEY = {"size": "bytes", "checksum": "sha256"}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PriorError(
            f"no prior at {path.parent}: {path.name} is missing; give the folder that "
            "save_pretrained made"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PriorError(f"{path} is not valid JSON ({error}); save the prior again") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise PriorError(f"{path} does not describe a prior (no 'format': '{FORMAT}')")
    if config.get("format_version") != FORMAT_VERSION:
        raise PriorError(
            f"{path} has format version {config.get('format_version')!r}, this library reads "
            f"{FORMAT_VERSION}; install the version of hf_kfc that wrote it"
        )
    files = config.get("files")
    if not isinstance(files, dict) or not all(isinstance(v, dict) for v in files.values()):
        raise PriorError(f"{path} lists no files; save the prior again")
    return config


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "bytes": path.stat().st_size}


def _is_prior(directory: Path) -> bool:
    try:
        _read_config(directory / CONFIG_NAME)
    except PriorError:
        return False
    return True


@contextmanager
def _moved_into(directory: Path) -> Iterator[Path]:
    """Yield a partial folder beside ``directory``; put it in place only if all went well."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.parent / f".{directory.name}.partial-{os.getpid()}"
    replaced = directory.parent / f".{directory.name}.replaced-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        if directory.exists():
            directory.rename(replaced)
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)
