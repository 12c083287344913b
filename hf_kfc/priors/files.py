"""The files of a prior: safetensors and JSON, written whole or not at all, checked on reading."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from reprlib import repr as short
from typing import Any, NoReturn

from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import HfKfcError, HubError, PriorError
from ..files import read_bounded, refuse_blocked, replace_directory
from ..hub import Snapshot
from ..schema import read
from .schema import FileEntry, part_of, tensors_of

__all__ = [
    "CARD_NAME",
    "CONFIG_LIMIT",
    "CONFIG_NAME",
    "FORMAT",
    "FORMAT_VERSION",
    "checksum_of",
    "describe",
    "find",
    "holds_tensors",
    "read_config",
    "read_files",
    "read_prior_files",
    "read_tensors",
    "refuse_other_files",
    "write_prior_files",
]

CARD_NAME = "README.md"
CONFIG_NAME = "config.json"
CONFIG_LIMIT = 64 * 2**20
"""The most bytes that a prior's description may have: it is read as a whole."""
FORMAT = "hf_kfc.prior"
FORMAT_VERSION = 2
_PATTERN = "prior{suffix}.safetensors"
_SHARD = re.compile(r"prior(-\d{5}-of-\d{5})?\.safetensors", re.ASCII)
_INDEX_NAME = "prior.safetensors.index.json"


# --- Writing --------------------------------------------------------------------------------------


def write_prior_files(
    directory: Path,
    config: Mapping[str, Any],
    tensors: dict[str, Tensor],
    max_shard_size: int | str,
    card: str | None = None,
) -> None:
    """Write a prior's folder under another name, then move it into place.

    Args:
        directory: The folder to make; an older prior there is replaced.
        config: JSON values; format, version, what the files hold and all checksums are added.
        tensors: By name; no two may share memory.
        max_shard_size: Size above which the tensors are split into several files.
        card: Text of the README, if there is to be one.

    Raises:
        PriorError: The folder holds something other than a prior, a value is not finite, or the
            disk is full.
    """
    refuse_other_files(directory)
    try:
        with replace_directory(directory) as partial:
            try:
                save_torch_state_dict(
                    tensors, partial, filename_pattern=_PATTERN, max_shard_size=max_shard_size
                )
            except ValueError as error:
                raise PriorError(
                    f"max_shard_size is no size ({error}); give one as '5GB'"
                ) from None
            files = {path.name: describe(path) for path in sorted(partial.glob("*.safetensors"))}
            header = {"format": FORMAT, "format_version": FORMAT_VERSION}
            whole = {**header, **config, "files": files}
            whole["checksum"] = _checksum(whole)
            (partial / CONFIG_NAME).write_text(_text(whole, directory), encoding="utf-8")
            if card is not None:
                (partial / CARD_NAME).write_text(card, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise PriorError(
            f"{directory} is not written ({_reason(error)}); what was there before is untouched"
        ) from error


def _text(config: Mapping[str, Any], directory: Path) -> str:
    try:
        return json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except ValueError:
        raise PriorError(
            f"{directory} is not written: {CONFIG_NAME} would hold NaN or infinite values; give "
            "finite metrics"
        ) from None


def refuse_other_files(directory: Path) -> None:
    """Make sure that a prior may be written to a folder: absent, empty or an older prior."""
    try:
        foreign = _foreign(directory)
    except OSError as error:  # as a name that is too long
        raise PriorError(
            f"{directory} is no folder ({error.strerror}); choose another one"
        ) from error
    if foreign:
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
    ours = (CONFIG_NAME, CARD_NAME)
    if foreign := [name for name in names if name not in ours and not holds_tensors(name)]:
        return f"holds {', '.join(foreign)}"
    try:
        read_config(directory)
    except PriorError:
        return f"holds {', '.join(names)} but no prior"
    return None


# --- Reading --------------------------------------------------------------------------------------


def read_prior_files(
    place: Path | Snapshot, layers: str | Sequence[str] | None = None
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
    tensors, damages = read_files(place, config["files"], _SHARD, wanted, "a prior")
    return config, dict(sorted(tensors.items())), damages


def read_files(
    place: Path | Snapshot,
    files: Mapping[str, Any],
    names: re.Pattern[str],
    wanted: Collection[str] | None,
    owner: str,
) -> tuple[dict[str, Tensor], list[str]]:
    """Read the tensors that are wanted, or all, from files that an untrusted description tells of.

    Returns:
        The tensors, and one phrase for each file that is missing or damaged; its own are left out.
    """
    tensors, damages = dict[str, Tensor](), list[str]()
    for name, values in files.items():
        expected, problems = read(FileEntry, values, f"file {short(name)}")
        damages += problems
        if expected is None or (wanted is not None and set(wanted).isdisjoint(expected.tensors)):
            continue
        try:
            if not names.fullmatch(name):
                raise PriorError(f"file {short(name)} is not one that {owner} has")
            path = find(place, name, expected.bytes)
            found = read_tensors(path, expected, wanted, cached=isinstance(place, Snapshot))
        except (HubError, PriorError) as error:
            damages.append(str(error))
            continue
        damages += [f"tensor {key} is in two files" for key in found if key in tensors]
        tensors |= found
    return tensors, damages


def find(place: Path | Snapshot, name: str, limit: int) -> Path:
    """Return where a file is on this machine; of a repository, fetch it up to so many bytes."""
    return place / name if isinstance(place, Path) else place.fetch(name, limit)


def read_config(place: Path | Snapshot) -> dict[str, Any]:
    """Read what describes a prior, and refuse what is missing, damaged or of another format."""
    where = f"{place}/{CONFIG_NAME}"
    again = "save the prior again"
    try:
        path = find(place, CONFIG_NAME, CONFIG_LIMIT)
        if isinstance(place, Snapshot):
            again = f"delete the cached copy {path.resolve()} and load it again"
        text = read_bounded(path, CONFIG_LIMIT).decode()
    except FileNotFoundError:
        raise PriorError(
            f"no prior at {place}: {CONFIG_NAME} is missing; give the folder that "
            "save_pretrained made"
        ) from None
    except OSError as error:
        raise PriorError(f"{where} is not readable ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise PriorError(f"{where} is not valid JSON ({error}); {again}") from None
    except HfKfcError as error:
        raise PriorError(str(error)) from error
    except ValueError as error:  # a null byte in a name
        raise PriorError(f"{where} is not readable ({error})") from None
    try:
        # As the standard has it: Python's reader also takes NaN and repeated keys.
        config = json.loads(
            text, parse_constant=_refuse_constant, object_pairs_hook=_without_repeats
        )
        checksum = _checksum(config) if isinstance(config, dict) else ""
    except (ValueError, RecursionError) as error:
        raise PriorError(f"{where} is not valid JSON ({error}); {again}") from None
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise PriorError(f"{where} does not describe a prior (no 'format': '{FORMAT}')")
    if config.get("format_version") != FORMAT_VERSION:
        raise PriorError(
            f"{where} has format version {short(config.get('format_version'))}, this library reads "
            f"{FORMAT_VERSION}; install the version of hf_kfc that wrote it"
        )
    if config.get("checksum") != checksum:
        raise PriorError(f"{where} was changed after it was saved; {again}")
    if not isinstance(config.get("files"), dict):
        raise PriorError(f"{where} lists no files; {again}")
    return config


def holds_tensors(name: str) -> bool:
    """Whether a file of this name, beside a prior's description, is that prior's."""
    return name == _INDEX_NAME or _SHARD.fullmatch(name) is not None


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


# --- Safetensors ----------------------------------------------------------------------------------


def describe(path: Path) -> dict[str, Any]:
    """Return the size, SHA-256 and tensor names of a safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            names = sorted(file.keys())
    except (OSError, SafetensorError) as error:
        raise PriorError(f"file {path.name} is not readable ({_reason(error)})") from None
    return {**checksum_of(path), "tensors": names}


def checksum_of(path: Path) -> dict[str, Any]:
    """Return a file's size and SHA-256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def read_tensors(
    path: Path,
    expected: FileEntry,
    wanted: Collection[str] | None = None,
    *,
    cached: bool = False,
) -> dict[str, Tensor]:
    """Read a file's tensors, after its size, its SHA-256 and the names in its header.

    Args:
        path: The file.
        expected: As :func:`describe` made it; untrusted.
        wanted: The names of the tensors to be read; None reads all.
        cached: Whether it is a copy of a file on the Hub.

    Raises:
        PriorError: The file is missing or not as described.
    """
    if not path.is_file():
        raise PriorError(f"file {path.name} is missing")
    remedy = f"; delete the cached copy {path.resolve()} and load it again" if cached else ""
    try:
        for key, value in checksum_of(path).items():
            if value != (due := getattr(expected, key)):
                raise PriorError(
                    f"file {path.name} is damaged ({key} {short(value)}, expected "
                    f"{short(due)}){remedy}"
                )
        with safe_open(path, "pt") as file:
            names = sorted(file.keys())
            if names != expected.tensors:
                raise PriorError(
                    f"file {path.name} has tensors {short(names)}, expected "
                    f"{short(expected.tensors)}"
                )
            # Copies: the library gives views of the file, which change when it is overwritten.
            return {
                name: file.get_tensor(name).clone()
                for name in names
                if wanted is None or name in wanted
            }
    except (OSError, SafetensorError, RuntimeError, TypeError) as error:  # the last two: shapes
        raise PriorError(f"file {path.name} is not readable ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0]
