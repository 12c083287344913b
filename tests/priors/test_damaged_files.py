"""Damage to the files of a prior: to what describes them, and to the bytes of the tensors."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny.priors import prior

from .forging import SHARD, phrases, read_config, refusal, update_checksum, write_config

# --- The configuration: nothing more can be said without it ---------------------------------


def test_missing_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert refusal(folder) == (
        f"no prior at {folder}: config.json is missing; give the folder that save_pretrained made"
    )
    assert refusal(folder / "nowhere").startswith(f"no prior at {folder / 'nowhere'}: ")


def test_a_path_that_is_not_a_folder(folder: Path) -> None:
    assert (
        refusal(folder / SHARD)
        == f"{folder / SHARD / 'config.json'} is not readable (Not a directory)"
    )
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    assert refusal(folder) == f"{folder / 'config.json'} is no regular file"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": ' + b"1" * 5000 + b"}",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1, "a": 1}',
    ],
    ids=["empty", "cut", "not UTF-8", "deep", "long number", "NaN", "infinite", "repeated key"],
)
def test_configuration_that_is_not_json(content: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    assert refusal(folder).startswith(f"{folder / 'config.json'} is not valid JSON (")


@pytest.mark.parametrize("config", [[], "prior", None, {}, {"format": "other"}, {"format": []}])
def test_configuration_of_something_else(config: Any, folder: Path) -> None:
    write_config(folder, config)
    assert refusal(folder) == (
        f"{folder / 'config.json'} does not describe a prior (no 'format': 'hf_kfc.prior')"
    )


@pytest.mark.parametrize("version", [1, "2", None, [2]])
def test_unknown_version(version: Any, folder: Path) -> None:
    write_config(folder, read_config(folder) | {"format_version": version})
    assert refusal(folder) == (
        f"{folder / 'config.json'} has format version {version!r}, this library reads 2; "
        "install the version of hf_kfc that wrote it"
    )


@pytest.mark.parametrize("files", [None, [SHARD], "sha256"])
def test_configuration_without_files(files: Any, folder: Path) -> None:
    write_config(folder, read_config(folder) | {"files": files})
    assert refusal(folder) == f"{folder / 'config.json'} lists no files; save the prior again"


# --- The tensor files ------------------------------------------------------------------------


def test_missing_file(folder: Path) -> None:
    (folder / SHARD).unlink()
    assert phrases(folder) == ["file prior.safetensors is missing"]


def test_truncated_file(folder: Path) -> None:
    size = (folder / SHARD).stat().st_size
    os.truncate(folder / SHARD, size - 1)
    assert phrases(folder) == [
        f"file prior.safetensors is damaged (bytes {size - 1}, expected {size})"
    ]


@pytest.mark.parametrize("at", [0, 20, -1])
def test_flipped_byte(at: int, folder: Path) -> None:
    content = bytearray((folder / SHARD).read_bytes())
    content[at] ^= 1
    (folder / SHARD).write_bytes(content)
    (phrase,) = phrases(folder)
    assert phrase.startswith("file prior.safetensors is damaged (sha256 ")


def test_every_shard_is_checked(tmp_path: Path) -> None:
    prior().save_pretrained(tmp_path, max_shard_size="1KB")
    first, *_, last = sorted(tmp_path.glob("*.safetensors"))
    first.unlink()
    last.write_bytes(b"")
    size = read_config(tmp_path)["files"][last.name]["bytes"]
    assert phrases(tmp_path) == [
        f"file {first.name} is missing",
        f"file {last.name} is damaged (bytes 0, expected {size})",
    ]


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"x" * 64, b"\2\0\0\0\0\0\0\0[]"])
def test_unreadable_file_with_its_checksum(content: bytes, folder: Path) -> None:
    (folder / SHARD).write_bytes(content)
    update_checksum(folder)
    (phrase,) = phrases(folder)
    assert phrase.startswith("file prior.safetensors is not readable (Error while deserializing")


def test_truncated_file_with_its_checksum(folder: Path) -> None:
    os.truncate(folder / SHARD, (folder / SHARD).stat().st_size - 1)
    update_checksum(folder)
    (phrase,) = phrases(folder)
    assert phrase.startswith("file prior.safetensors is not readable (")


def _with_header(folder: Path, name: str, shape: list[int]) -> None:
    """Change the shape of an empty tensor where only the file's header says it."""
    content = (folder / SHARD).read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    assert header[name]["shape"] == [0]
    header[name]["shape"] = shape
    text = json.dumps(header).encode()
    (folder / SHARD).write_bytes(len(text).to_bytes(8, "little") + text + content[start:])
    update_checksum(folder)


@pytest.mark.parametrize("shape", [[0, 2**63], [2**63, 0], [2**40, 2**40, 0]])
def test_impossible_shape_with_its_checksum(shape: list[int], folder: Path) -> None:
    _with_header(folder, "curvature/kinds/U_A", shape)
    (phrase,) = phrases(folder)
    assert phrase.startswith("file prior.safetensors is not readable (")


def test_possible_shape_that_torch_cannot_compute_with(folder: Path) -> None:
    shape = [0, 2**40, 2**40]
    _with_header(folder, "curvature/kinds/U_A", shape)
    assert phrases(folder) == [f"kinds: U_A has shape {shape}, expected [2, 2]"]


def test_a_folder_in_place_of_a_file(folder: Path) -> None:
    (folder / SHARD).unlink()
    (folder / SHARD).mkdir()
    assert phrases(folder) == ["file prior.safetensors is missing"]


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/passwd",
        "..",
        ".",
        "",
        "sub/prior.safetensors",
        "config.json",
        "a\0b",
        "\ud800",
    ],
)
def test_names_of_files_that_a_prior_does_not_have(name: str, folder: Path) -> None:
    """Reading them is an attack or a mistake, even where there is such a file."""
    (folder.parent / "x").write_bytes((folder / SHARD).read_bytes())
    (folder / "sub").mkdir()
    (folder / "sub" / SHARD).write_bytes((folder / SHARD).read_bytes())
    config = read_config(folder)
    config["files"] = {name: config["files"][SHARD]}
    write_config(folder, config)
    assert phrases(folder) == [f"file {name!r} is not one that a prior has"]


def test_a_very_long_name_of_a_file(folder: Path) -> None:
    config = read_config(folder)
    config["files"]["x" * 5000] = {}
    write_config(folder, config)
    for phrase in phrases(folder):
        assert len(phrase) < 100


def test_files_without_checksums(folder: Path) -> None:
    config = read_config(folder)
    config["files"] = {SHARD: {}}
    write_config(folder, config)
    assert phrases(folder) == [
        "file 'prior.safetensors': field bytes is missing, expected a count",
        "file 'prior.safetensors': field sha256 is missing, expected a sum",
        "file 'prior.safetensors': field tensors is missing, expected a list of names",
    ]


def test_a_tensor_in_two_files(folder: Path) -> None:
    second = "prior-00002-of-00002.safetensors"
    save_file({"anchor/scale": torch.ones(())}, folder / second)
    update_checksum(folder, second)
    assert phrases(folder) == ["tensor anchor/scale is in two files"]
