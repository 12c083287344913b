"""Saved priors that somebody changed, and what is said when they are loaded."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny.priors import Tensors, prior
from torch import Tensor

from hf_kfc.errors import PriorError
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.priors import files as files_module
from hf_kfc.priors.content import fingerprint_of
from hf_kfc.priors.files import checksum_of, describe, read_prior_files, write_prior_files

Config = dict[str, Any]
Forge = Callable[[Config, Tensors], None]

SHARD = "prior.safetensors"


# --- The files -----------------------------------------------------------------------------------


def read_config(folder: Path) -> Config:
    config: Config = json.loads((folder / "config.json").read_text())
    return config


def write_config(folder: Path, config: Any) -> None:
    """Write a description, with the checksum that fits it."""
    if isinstance(config, dict):
        config = config | {"checksum": files_module._checksum(config)}
    (folder / "config.json").write_text(json.dumps(config))


def update_checksum(folder: Path, name: str = SHARD) -> None:
    """Make damage to a file look as if it had always been there."""
    config = read_config(folder)
    try:
        entry = describe(folder / name)
    except PriorError:  # no safetensors any more
        entry = config["files"][name] | checksum_of(folder / name)
    config["files"][name] = entry
    write_config(folder, config)


# --- What is said --------------------------------------------------------------------------------


def refusal(folder: Path) -> str:
    with pytest.raises(PriorError) as error:
        ConsolidationPrior.from_pretrained(folder)
    return str(error.value)


def phrases(folder: Path) -> list[str]:
    """Load what cannot be loaded and return the problems that the error lists."""
    try:
        ConsolidationPrior.from_pretrained(folder)
    except PriorError as error:
        message = str(error)
    else:
        raise AssertionError(f"{folder} was loaded")
    assert "\n" not in message
    prefix = f"prior at {folder} cannot be loaded: "
    assert message.startswith(prefix)
    inner = "prior of task 'old' is unusable: "
    return message.removeprefix(prefix).removeprefix(inner).split("; ")


# --- The content, with checksums that fit --------------------------------------------------------


def forge(folder: Path, *changes: Forge, shard: str = "5GB", sign: bool = True) -> Path:
    """Write the sample prior with changed content, and checksums that fit the changes.

    Only if signed does the fingerprint fit as well.
    """
    prior().save_pretrained(folder)
    config, tensors, damages = read_prior_files(folder)
    assert not damages
    config, tensors = copy.deepcopy(config), {n: v.clone() for n, v in tensors.items()}
    del config["files"]
    for change in changes:
        change(config, tensors)
    if sign:
        config["fingerprint"] = fingerprint_of(config, tensors)
    write_prior_files(folder, config, tensors, shard)
    return folder


def set_entry(name: str, index: tuple[int, ...], value: float) -> Forge:
    def change(_: Config, tensors: Tensors) -> None:
        tensors[name][index] = value

    return change


def set_tensor(name: str, value: Tensor) -> Forge:
    def change(_: Config, tensors: Tensors) -> None:
        tensors[name] = value

    return change


def drop_tensor(name: str) -> Forge:
    def change(_: Config, tensors: Tensors) -> None:
        del tensors[name]

    return change


def set_field(name: str, value: Any) -> Forge:
    def change(config: Config, _: Tensors) -> None:
        config[name] = value

    return change


def drop_field(name: str) -> Forge:
    def change(config: Config, _: Tensors) -> None:
        del config[name]

    return change


def in_block(block: str, **fields: Any) -> Forge:
    def change(config: Config, _: Tensors) -> None:
        for entry in config["blocks"]:
            if entry["name"] == block:
                entry.update(fields)

    return change


def in_provenance(**fields: Any) -> Forge:
    def change(config: Config, _: Tensors) -> None:
        config["provenance"] |= fields

    return change


def append_block(entry: Any) -> Forge:
    def change(config: Config, _: Tensors) -> None:
        config["blocks"].append(entry)

    return change


def without(key: str, *, of: str) -> Forge:
    def change(config: Config, _: Tensors) -> None:
        for entry in config["blocks"]:
            if entry["name"] == of:
                del entry[key]

    return change
