"""The files of a prior: safetensors and JSON, written whole or not at all, checked on reading."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as short
from typing import Any

from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..errors import PriorError
from ..files import replace_directory

__all__ = ["CONFIG_NAME", "FORMAT", "FORMAT_VERSION", "read_prior_files", "write_prior_files"]

CONFIG_NAME = "config.json"
FORMAT = "hf_kfc.prior"
FORMAT_VERSION = 1
_PATTERN = "prior{suffix}.safetensors"
_SHARD = re.compile(r"prior(-\d{5}-of-\d{5})?\.safetensors", re.ASCII)
_INDEX_NAME = "prior.safetensors.index.json"


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
    if foreign := _foreign(directory):
        raise PriorError(f"{directory} {foreign}, which saving would delete; choose another folder")
    with replace_directory(directory) as partial:
        save_torch_state_dict(
            tensors, partial, filename_pattern=_PATTERN, max_shard_size=max_shard_size
        )
        files = {path.name: _describe(path) for path in sorted(partial.glob("*.safetensors"))}
        header = {"format": FORMAT, "format_version": FORMAT_VERSION}
        text = json.dumps({**header, **config, "files": files}, indent=2, ensure_ascii=False)
        (partial / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")


def read_prior_files(directory: Path) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Read a prior's folder.

    Args:
        directory: As made by :func:`write_prior_files`.

    Returns:
        The configuration, the tensors in the order of their names, and one phrase for each file
        that is missing or damaged, whose tensors are left out.

    Raises:
        PriorError: The configuration is missing, damaged, or of an unknown format.
    """
    config = _read_config(directory / CONFIG_NAME)
    damages: list[str] = []
    tensors: dict[str, Tensor] = {}
    for name, expected in config["files"].items():
        try:
            found = _read_tensors(directory, name, expected)
        except PriorError as error:
            damages.append(str(error))
            continue
        damages += [f"tensor {key} is in two files" for key in found if key in tensors]
        tensors |= found
    return config, dict(sorted(tensors.items())), damages


def _read_tensors(directory: Path, name: str, expected: Mapping[str, Any]) -> dict[str, Tensor]:
    if not _SHARD.fullmatch(name):
        raise PriorError(f"file {short(name)} is not one that a prior has")
    path = directory / name
    if not path.is_file():
        raise PriorError(f"file {name} is missing")
    try:
        found = _describe(path)
        for key, value in found.items():
            if value != (due := expected.get(key)):
                raise PriorError(
                    f"file {name} is damaged ({key} {short(value)}, expected {short(due)})"
                )
        return load_file(path)
    except (OSError, SafetensorError, RuntimeError, TypeError) as error:  # the last two: shapes
        reason = str(error).partition("\n")[0]
        raise PriorError(f"file {name} is not readable ({reason})") from None


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise PriorError(
            f"no prior at {path.parent}: {path.name} is missing; give the folder that "
            "save_pretrained made"
        ) from None
    except OSError as error:
        raise PriorError(f"{path} is not readable ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise PriorError(f"{path} is not valid JSON ({error}); save the prior again") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise PriorError(f"{path} does not describe a prior (no 'format': '{FORMAT}')")
    if config.get("format_version") != FORMAT_VERSION:
        raise PriorError(
            f"{path} has format version {short(config.get('format_version'))}, this library reads "
            f"{FORMAT_VERSION}; install the version of hf_kfc that wrote it"
        )
    files = config.get("files")
    if not isinstance(files, dict) or not all(isinstance(v, dict) for v in files.values()):
        raise PriorError(f"{path} lists no files; save the prior again")
    return config


def _describe(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _foreign(directory: Path) -> str | None:
    """Say what there is at a path besides a prior."""
    if not directory.exists():
        return None
    if not directory.is_dir():
        return "is a file"
    names = sorted(path.name for path in directory.iterdir())
    if not names:
        return None
    ours = {CONFIG_NAME, _INDEX_NAME}
    if foreign := [name for name in names if name not in ours and not _SHARD.fullmatch(name)]:
        return f"holds {', '.join(foreign)}"
    try:
        _read_config(directory / CONFIG_NAME)
    except PriorError:
        return f"holds {', '.join(names)} but no prior"
    return None
