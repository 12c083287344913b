"""The files of a prior: safetensors and JSON, written whole or not at all, checked on reading."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any, NoReturn

from huggingface_hub import save_torch_state_dict
from torch import Tensor

from ..errors import HubError, PriorError
from ..files import refuse_blocked, replace_directory
from ..hub import Snapshot
from .description import part_of, tensors_of
from .tensor_files import describe, read_tensors

__all__ = [
    "CONFIG_LIMIT",
    "CONFIG_NAME",
    "FORMAT",
    "FORMAT_VERSION",
    "find_prior_files",
    "holds_tensors",
    "read_config",
    "read_prior_files",
    "refuse_other_files",
    "write_prior_files",
]

CONFIG_NAME = "config.json"
CONFIG_LIMIT = 64 * 2**20
"""The most bytes that a prior's description may have: it is read as a whole."""
FORMAT = "hf_kfc.prior"
FORMAT_VERSION = 2
_PATTERN = "prior{suffix}.safetensors"
_SHARD = re.compile(r"prior(-\d{5}-of-\d{5})?\.safetensors", re.ASCII)
_INDEX_NAME = "prior.safetensors.index.json"
_REPOSITORY = re.compile(r"(?P<repo_id>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>.+))?", re.ASCII)


def write_prior_files(
    directory: Path,
    config: Mapping[str, Any],
    tensors: dict[str, Tensor],
    max_shard_size: int | str,
) -> None:
    """Write a prior's folder under another name, then move it into place.

    Args:
        directory: The folder to make; an older prior there is replaced.
        config: JSON values; format, version, what the files hold and all checksums are added.
        tensors: By name; no two may share memory.
        max_shard_size: Size above which the tensors are split into several files.

    Raises:
        PriorError: The folder holds something other than a prior, or a value is not finite.
    """
    refuse_other_files(directory)
    with replace_directory(directory) as partial:
        save_torch_state_dict(
            tensors, partial, filename_pattern=_PATTERN, max_shard_size=max_shard_size
        )
        files = {path.name: describe(path) for path in sorted(partial.glob("*.safetensors"))}
        header = {"format": FORMAT, "format_version": FORMAT_VERSION}
        whole = {**header, **config, "files": files}
        whole["checksum"] = _checksum(whole)
        try:
            text = json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False)
        except ValueError:
            raise PriorError(
                f"{directory} is not written: {CONFIG_NAME} would hold NaN or infinite values; "
                "give finite metrics"
            ) from None
        (partial / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")


def find_prior_files(
    name_or_path: str | Path,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
) -> Path | Snapshot:
    """Find out whether a prior is a folder or a repository, and which commit of it.

    Args:
        name_or_path: A folder, or ``"org/name"`` or ``"org/name@revision"`` on the Hub.
        revision: Branch, tag or hash, of a repository.
        token: Access token; by default the one logged in with.
        cache_dir: Where downloads are kept; by default the cache of the Hub's client.

    Raises:
        PriorError: The repository has no prior at that revision, or is out of reach.
    """
    match = None if isinstance(name_or_path, Path) else _REPOSITORY.fullmatch(name_or_path)
    if match is None or Path(name_or_path).exists():
        if revision is not None:
            raise PriorError(
                f"revision '{revision}' is given for {name_or_path}, which is a folder"
            )
        return Path(name_or_path)
    repo_id, named = match["repo_id"], match["revision"]
    if named and revision:
        raise PriorError(f"{name_or_path} names a revision, and '{revision}' is given; leave one")
    try:
        return Snapshot.find(
            repo_id, named or revision, CONFIG_NAME, CONFIG_LIMIT, token=token, cache_dir=cache_dir
        )
    except HubError as error:
        raise PriorError(f"no prior at {name_or_path}: no such folder, and {error}") from error


def read_prior_files(
    place: Path | Snapshot, layers: Sequence[str] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor], list[str]]:
    """Read a prior's folder or repository.

    Args:
        place: As made by :func:`write_prior_files`.
        layers: Patterns of block names (``*``, ``?``, ``[...]``): only those blocks, from the
            files that hold them; None reads all.

    Returns:
        The configuration, the tensors in the order of their names, and one phrase for each file
        that is missing or damaged, whose tensors are left out.

    Raises:
        PriorError: The configuration is missing, damaged, or of an unknown format, or a pattern
            matches no block.
    """
    config = read_config(place)
    wanted = None
    if layers is not None:
        try:
            config = part_of(config, layers)
        except PriorError as error:
            raise PriorError(f"prior at {place}: {error}") from None
        wanted = tensors_of(config)
    damages: list[str] = []
    tensors: dict[str, Tensor] = {}
    for name, expected in config["files"].items():
        if wanted is not None and wanted.isdisjoint(_names(expected)):
            continue
        try:
            found = read_tensors(_find_shard(place, name, expected), expected, wanted)
        except (HubError, PriorError) as error:
            damages.append(str(error))
            continue
        damages += [f"tensor {key} is in two files" for key in found if key in tensors]
        tensors |= found
    return config, dict(sorted(tensors.items())), damages


def read_config(place: Path | Snapshot) -> dict[str, Any]:
    """Read what describes a prior.

    Args:
        place: Its folder or repository.

    Raises:
        PriorError: It is missing, damaged, or of an unknown format.
    """
    where = f"{place}/{CONFIG_NAME}"
    config, checksum = _parse(_read_text(place, where), where)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise PriorError(f"{where} does not describe a prior (no 'format': '{FORMAT}')")
    if config.get("format_version") != FORMAT_VERSION:
        raise PriorError(
            f"{where} has format version {short(config.get('format_version'))}, this library reads "
            f"{FORMAT_VERSION}; install the version of hf_kfc that wrote it"
        )
    if config.get("checksum") != checksum:
        raise PriorError(f"{where} was changed after it was saved; save the prior again")
    files = config.get("files")
    if not isinstance(files, dict) or not all(isinstance(v, dict) for v in files.values()):
        raise PriorError(f"{where} lists no files; save the prior again")
    return config


def holds_tensors(name: str) -> bool:
    """Whether a file of this name, beside a prior's description, is that prior's.

    Args:
        name: The file's name.
    """
    return name == _INDEX_NAME or _SHARD.fullmatch(name) is not None


def _read_text(place: Path | Snapshot, where: str) -> str:
    try:
        path = _find(place, CONFIG_NAME, CONFIG_LIMIT)
        if (size := path.stat().st_size) > CONFIG_LIMIT:
            raise PriorError(f"{where} has {size} bytes, expected at most {CONFIG_LIMIT}")
        return path.read_text(encoding="utf-8")
    except HubError as error:
        raise PriorError(str(error)) from error
    except FileNotFoundError:
        raise PriorError(
            f"no prior at {place}: {CONFIG_NAME} is missing; give the folder that "
            "save_pretrained made"
        ) from None
    except OSError as error:
        raise PriorError(f"{where} is not readable ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise PriorError(f"{where} is not valid JSON ({error}); save the prior again") from None


def _parse(text: str, where: str) -> tuple[Any, str]:
    """Read JSON as its standard has it: Python's reader also takes NaN and repeated keys.

    Returns:
        The value, and its checksum.
    """
    try:
        value = json.loads(
            text, parse_constant=_refuse_constant, object_pairs_hook=_without_repeats
        )
        return value, _checksum(value) if isinstance(value, dict) else ""
    except (ValueError, RecursionError) as error:
        raise PriorError(f"{where} is not valid JSON ({error}); save the prior again") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands twice")
    return values


def _checksum(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a prior's description, which holds that of every other file."""
    values = {name: value for name, value in config.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _find_shard(place: Path | Snapshot, name: str, expected: Mapping[str, Any]) -> Path:
    if not _SHARD.fullmatch(name):
        raise PriorError(f"file {short(name)} is not one that a prior has")
    size = expected.get("bytes")
    return _find(place, name, size if isinstance(size, int) else 0)


def _find(place: Path | Snapshot, name: str, limit: int) -> Path:
    return place / name if isinstance(place, Path) else place.fetch(name, limit)


def _names(expected: Mapping[str, Any]) -> list[str]:
    names = expected.get("tensors")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def refuse_other_files(directory: Path) -> None:
    """Make sure that a prior may be written to a folder, which it replaces.

    Args:
        directory: Absent, empty or an older prior.

    Raises:
        HfKfcError: The folder holds something other than a prior, or cannot be made.
    """
    if foreign := _foreign(directory):
        raise PriorError(f"{directory} {foreign}, which saving would delete; choose another folder")
    refuse_blocked(directory)


def _foreign(directory: Path) -> str | None:
    """Say what there is at a path besides a prior."""
    if not directory.exists():
        return None
    if not directory.is_dir():
        return "is a file"
    names = sorted(path.name for path in directory.iterdir())
    if not names:
        return None
    if foreign := [name for name in names if name != CONFIG_NAME and not holds_tensors(name)]:
        return f"holds {', '.join(foreign)}"
    try:
        read_config(directory)
    except PriorError:
        return f"holds {', '.join(names)} but no prior"
    return None
