"""The files: every kind of damage is named, and nothing half-written is ever left behind."""

import json
import os
import signal
import tempfile
from collections.abc import Callable
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from hf_kfc.errors import PriorError
from hf_kfc.files import replace_directory
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.priors import files as files_module

from .samples import (
    Config,
    Forge,
    Tensors,
    assert_equal_priors,
    forge,
    phrases,
    prior,
)

SHARD = "prior.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved prior."""
    prior().save_pretrained(tmp_path / "prior")
    return tmp_path / "prior"


def read_config(folder: Path) -> Config:
    config: Config = json.loads((folder / "config.json").read_text())
    return config


def write_config(folder: Path, config: Any) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def update_checksum(folder: Path, name: str = SHARD) -> None:
    """Make damage to a file look as if it had always been there."""
    config = read_config(folder)
    config["files"][name] = files_module._describe(folder / name)
    write_config(folder, config)


def test_a_forgery_without_changes_is_loaded(tmp_path: Path) -> None:
    """Otherwise the refusals of forgeries below would prove nothing."""
    loaded = ConsolidationPrior.from_pretrained(forge(tmp_path))
    assert_equal_priors(loaded, prior())
    unsigned = ConsolidationPrior.from_pretrained(forge(tmp_path, sign=False))
    assert_equal_priors(unsigned, prior())


# --- The configuration: nothing more can be said without it ---------------------------------


def refusal(folder: Path) -> str:
    with pytest.raises(PriorError) as error:
        ConsolidationPrior.from_pretrained(folder)
    return str(error.value)


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
    assert refusal(folder) == f"{folder / 'config.json'} is not readable (Is a directory)"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"1" * 5000 + b"}"],
    ids=["empty", "cut", "not UTF-8", "deep", "long number"],
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


@pytest.mark.parametrize("version", [2, "1", None, [1]])
def test_unknown_version(version: Any, folder: Path) -> None:
    write_config(folder, read_config(folder) | {"format_version": version})
    assert refusal(folder) == (
        f"{folder / 'config.json'} has format version {version!r}, this library reads 1; "
        "install the version of hf_kfc that wrote it"
    )


@pytest.mark.parametrize("files", [None, [SHARD], {SHARD: "sha256"}])
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
    (phrase,) = phrases(folder)
    assert len(phrase) < 100


def test_files_without_checksums(folder: Path) -> None:
    config = read_config(folder)
    config["files"] = {SHARD: {}}
    write_config(folder, config)
    size = (folder / SHARD).stat().st_size
    assert phrases(folder) == [f"file prior.safetensors is damaged (bytes {size}, expected None)"]


def test_a_tensor_in_two_files(folder: Path) -> None:
    second = "prior-00002-of-00002.safetensors"
    save_file({"anchor/scale": torch.ones(())}, folder / second)
    update_checksum(folder, second)
    assert phrases(folder) == ["tensor anchor/scale is in two files"]


# --- The content, with checksums that fit --------------------------------------------------------


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


SCALE = {
    "name": "scale again",
    "layout": "elementwise",
    "parameters": {"scale": []},
    "operator": "identity",
    "tensors": {"scale": "curvature/scale/scale"},
}
NAN, INF = float("nan"), float("inf")
LAYOUTS = "expected one of out_in, in_out, elementwise"
KINDS = "expected one of identity, diagonal, kronecker, kronecker_eigen"

DAMAGES: dict[str, tuple[Forge, str]] = {
    # values
    "NaN in an anchor": (
        set_entry("anchor/key.bias", (1,), NAN),
        "the anchor key.bias has NaN or infinite values",
    ),
    "infinity in an anchor": (
        set_entry("anchor/key.bias", (1,), INF),
        "the anchor key.bias has NaN or infinite values",
    ),
    "NaN in a factor": (
        set_entry("curvature/words/G", (0, 0), NAN),
        "words: G has NaN or infinite values",
    ),
    "infinity in a vector factor": (
        set_entry("curvature/words/A", (2,), INF),
        "words: A has NaN or infinite values",
    ),
    "NaN in a diagonal": (
        set_entry("curvature/norm/diagonal", (2, 1), NAN),
        "norm: diagonal has NaN or infinite values",
    ),
    "NaN in a basis": (
        set_entry("curvature/places/U_G", (0, 1), NAN),
        "places: U_G has NaN or infinite values",
    ),
    "infinite scale": (
        set_entry("curvature/scale/scale", (), INF),
        "scale: scale has NaN or infinite values",
    ),
    "asymmetric factor": (
        set_tensor("curvature/words/G", torch.eye(4) + torch.eye(4).roll(1, 0)),
        "words: G is not symmetric (largest difference 1)",
    ),
    "indefinite factor": (
        set_tensor("curvature/words/G", torch.diag(torch.tensor([1.0, 1, 1, -0.01]))),
        "words: G is indefinite",
    ),
    "negative vector factor": (
        set_entry("curvature/words/A", (2,), -2.0),
        "words: A has a negative entry (-2)",
    ),
    "negative diagonal": (
        set_entry("curvature/norm/diagonal", (0, 0), -0.5),
        "norm: diagonal has a negative entry (-0.5)",
    ),
    "negative scale": (
        set_entry("curvature/scale/scale", (), -1.0),
        "scale: scale has a negative entry (-1)",
    ),
    "negative second moment": (
        set_entry("curvature/places/second_moments", (0, 0), -3.0),
        "places: second_moments has a negative entry (-3)",
    ),
    "basis that is not orthonormal": (
        set_tensor("curvature/places/U_G", 2 * torch.eye(4)),
        "places: U_G is not orthonormal (error 3)",
    ),
    # tensors
    "dtype of an anchor": (
        set_tensor("anchor/key.bias", torch.zeros(3, dtype=torch.bfloat16)),
        "tensor anchor/key.bias is torch.bfloat16, expected torch.float32",
    ),
    "dtype without NaN": (
        set_tensor("anchor/key.bias", torch.zeros(3, dtype=torch.int64)),
        "tensor anchor/key.bias is torch.int64, expected torch.float32",
    ),
    "dtype of a factor": (
        set_tensor("curvature/words/G", torch.eye(4, dtype=torch.float64)),
        "tensor curvature/words/G is torch.float64, expected torch.float32",
    ),
    "missing anchor": (drop_tensor("anchor/key.bias"), "the anchor of key.bias is missing"),
    "missing factor": (
        drop_tensor("curvature/words/G"),
        "words: tensor curvature/words/G is missing",
    ),
    "extra anchor": (
        set_tensor("anchor/other", torch.zeros(2)),
        "the anchor other has no curvature",
    ),
    "extra factor": (
        set_tensor("curvature/words/B", torch.zeros(2)),
        "tensor curvature/words/B belongs to no block",
    ),
    "extra tensor": (set_tensor("other", torch.zeros(2)), "tensor other belongs to no block"),
    "shape of an anchor": (
        set_tensor("anchor/key.bias", torch.zeros(4)),
        "the anchor key.bias has shape [4], expected [3]",
    ),
    "shape of a factor": (
        set_tensor("curvature/words/G", torch.eye(3)),
        "words: G has shape [3, 3], expected [4, 4]",
    ),
    "factor without entries": (
        set_tensor("curvature/words/G", torch.empty(0, 0)),
        "words: G has shape [0, 0], expected [4, 4]",
    ),
    "factor of another rank": (
        set_tensor("curvature/words/G", torch.zeros(4, 4, 4)),
        "words: G has shape [4, 4, 4], expected [4, 4]",
    ),
    # blocks
    "unknown operator": (
        in_block("norm", operator="rank_one"),
        f"norm: operator 'rank_one' is unknown, {KINDS}",
    ),
    "another operator's tensors": (
        in_block("norm", operator="identity"),
        "norm: operator 'identity' has tensors diagonal, expected scale",
    ),
    "unknown layout": (
        in_block("norm", layout="diagonal"),
        f"block 6: field layout is 'diagonal', {LAYOUTS}",
    ),
    "layout of another rank": (
        in_block("convolution", layout="in_out"),
        "convolution: convolution.weight of shape [3, 2, 2] has no layout 'in_out'",
    ),
    "parameter in two blocks": (append_block(SCALE), "parameter scale stands in two blocks"),
    "two blocks of one name": (
        in_block("key", name="query"),
        "two blocks have the name 'query'",
    ),
    "block without parameters": (
        append_block(SCALE | {"parameters": {}}),
        "scale again: 0 parameters do not make a weight and a bias",
    ),
    # malformed fields
    "shape that is no list": (
        in_block("norm", parameters={"norm.weight": [4], "norm.bias": "4"}),
        "block 6: field parameters is {'norm.bias': '4', 'norm.weight': [4]}, "
        "expected shapes by name",
    ),
    "negative size": (
        in_block("scale", parameters={"scale": [-1]}),
        "block 7: field parameters is {'scale': [-1]}, expected shapes by name",
    ),
    "true as a size": (
        in_block("scale", parameters={"scale": [True]}),
        "block 7: field parameters is {'scale': [True]}, expected shapes by name",
    ),
    "block that is no object": (append_block("norm"), "block 8: it is 'norm', expected an object"),
    "block without name": (
        without("name", of="norm"),
        "block 6: field name is None, expected a name",
    ),
    "block without tensors": (
        append_block({k: v for k, v in SCALE.items() if k != "tensors"}),
        "block 8: field tensors is None, expected names by name",
    ),
    "operator that is no name": (
        in_block("norm", operator=["diagonal"]),
        "block 6: field operator is ['diagonal'], expected a name",
    ),
    "layout that is no name": (
        in_block("norm", layout={"a": 1}),
        f"block 6: field layout is {{'a': 1}}, {LAYOUTS}",
    ),
    "tensor that is no name": (
        append_block(SCALE | {"tensors": {"scale": []}}),
        "block 8: field tensors is {'scale': []}, expected names by name",
    ),
    "number of examples that is none": (
        set_field("num_curvature_examples", "64"),
        "field num_curvature_examples is '64', expected a count",
    ),
    "negative number of examples": (
        set_field("num_curvature_examples", -1),
        "field num_curvature_examples is -1, expected a count",
    ),
    "no number of examples": (
        drop_field("num_curvature_examples"),
        "field num_curvature_examples is None, expected a count",
    ),
    "ignored that is no list": (
        set_field("ignored", "head"),
        "field ignored is 'head', expected a list of names",
    ),
    "ignored that are no names": (
        set_field("ignored", [1]),
        "field ignored is [1], expected a list of names",
    ),
    "provenance that is none": (
        set_field("provenance", None),
        "provenance is None, expected an object",
    ),
    "unknown field of the provenance": (
        in_provenance(colour="red"),
        "provenance has an unknown colour",
    ),
    "malformed field of the provenance": (
        in_provenance(num_examples="70"),
        "provenance has num_examples '70'",
    ),
    "malformed metrics": (
        in_provenance(anchor_metrics={"accuracy": None}),
        "provenance has anchor_metrics {'accuracy': None}",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_content(damage: str, tmp_path: Path) -> None:
    change, phrase = DAMAGES[damage]
    assert phrases(forge(tmp_path, change)) == [phrase]


@pytest.mark.parametrize("blocks", [None, {}, "blocks"])
def test_blocks_that_are_no_list(blocks: Any, tmp_path: Path) -> None:
    found = phrases(forge(tmp_path, set_field("blocks", blocks)))
    assert found[0] == f"field blocks is {blocks!r}, expected a list"
    assert "tensor curvature/words/A belongs to no block" in found


def test_a_prior_of_nothing(tmp_path: Path) -> None:
    def empty(config: Config, tensors: Tensors) -> None:
        config["blocks"] = []
        for name in set(tensors) - {"anchor/scale"}:
            del tensors[name]

    assert phrases(forge(tmp_path, empty)) == [
        "no parameter is covered",
        "the anchor scale has no curvature",
    ]


def test_a_single_field_of_the_provenance_is_missing(tmp_path: Path) -> None:
    def change(config: Config, _: Tensors) -> None:
        del config["provenance"]["library_versions"]
        del config["provenance"]["task"]

    assert phrases(forge(tmp_path, change)) == [
        "provenance has no task",
        "provenance has no library_versions",
    ]


TOGETHER = (
    "NaN in an anchor",
    "dtype of a factor",
    "extra anchor",
    "extra tensor",
    "negative scale",
    "asymmetric factor of the query",
    "unknown operator",
    "negative number of examples",
    "ignored that is no list",
    "malformed field of the provenance",
    "unknown layout of the kinds",
    "missing factor of the places",
)
MORE: dict[str, tuple[Forge, str]] = {
    "asymmetric factor of the query": (
        set_tensor("curvature/query/G", torch.eye(3) + torch.eye(3).roll(1, 0)),
        "query: G is not symmetric (largest difference 1)",
    ),
    "unknown layout of the kinds": (
        in_block("kinds", layout=None),
        f"block 4: field layout is None, {LAYOUTS}",
    ),
    "missing factor of the places": (
        drop_tensor("curvature/places/U_A"),
        "places: tensor curvature/places/U_A is missing",
    ),
}


def test_all_damages_are_listed_together(tmp_path: Path) -> None:
    """Each once, and nothing else: no damage makes another message of its own."""
    chosen = [(DAMAGES | MORE)[name] for name in TOGETHER]
    found = phrases(forge(tmp_path, *(change for change, _ in chosen)))
    assert sorted(found) == sorted(phrase for _, phrase in chosen)


def test_misfits_are_listed_in_the_order_of_names(tmp_path: Path) -> None:
    """Safetensors gives empty tensors in another order every time."""

    def add(_: Config, tensors: Tensors) -> None:
        tensors.update({f"extra {i}": torch.empty(0) for i in range(6)})

    expected = [f"tensor extra {i} belongs to no block" for i in range(6)]
    assert phrases(forge(tmp_path, add)) == expected


def test_damaged_files_and_content_are_listed_together(tmp_path: Path) -> None:
    forge(tmp_path, DAMAGES["unknown operator"][0], set_field("ignored", 1), shard="1KB")
    holder = json.loads((tmp_path / f"{SHARD}.index.json").read_text())["weight_map"]
    lost = holder["anchor/words.weight"]
    (tmp_path / lost).unlink()
    assert len(set(holder.values())) > 1
    assert phrases(tmp_path) == [
        f"file {lost} is missing",
        DAMAGES["unknown operator"][1],
        "field ignored is 1, expected a list of names",
    ]


def _other_layout(config: Config, _: Tensors) -> None:
    config["blocks"][0]["name"] = "other"


def _other_factor(_: Config, tensors: Tensors) -> None:
    tensors["curvature/words/A"] *= 2


OTHER = ["its content is not what was saved (config.json has another fingerprint)"]


@pytest.mark.parametrize("change", [_other_layout, _other_factor])
def test_valid_content_that_is_not_what_was_saved(change: Forge, tmp_path: Path) -> None:
    assert phrases(forge(tmp_path, change, sign=False)) == OTHER


@pytest.mark.parametrize("value", [None, 1, [], "x"])
def test_no_fingerprint(value: Any, folder: Path) -> None:
    write_config(folder, read_config(folder) | {"fingerprint": value})
    assert phrases(folder) == OTHER


# --- Saving: whole or not at all -----------------------------------------------------------------


class Interruption(BaseException):
    """Like KeyboardInterrupt, which pytest keeps for itself."""


def write_a_part_and_raise(tensors: Tensors, folder: Path, **_: Any) -> None:
    save_file(tensors, folder / "prior-00001-of-00002.safetensors")
    raise Interruption


def raise_while_moving_in(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    """Fail between moving the older prior out and the new one in."""
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        if to == target and ".partial" in self.name:
            raise Interruption
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)


def raise_while_moving_out(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        if self == target:
            raise Interruption
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", failing)


def raise_after_moving_out(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    rename = Path.rename

    def failing(self: Path, to: Path) -> Path:
        moved = rename(self, to)
        if self == target:
            raise Interruption
        return moved

    monkeypatch.setattr(Path, "rename", failing)


def raise_while_writing(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    monkeypatch.setattr(files_module, "save_torch_state_dict", write_a_part_and_raise)


def raise_while_describing(monkeypatch: pytest.MonkeyPatch, _: Path) -> None:
    def failing(*_: Any) -> None:
        raise Interruption

    monkeypatch.setattr(files_module, "_describe", failing)


FAILURES = [
    raise_while_writing,
    raise_while_describing,
    raise_while_moving_out,
    raise_after_moving_out,
    raise_while_moving_in,
]


@pytest.mark.parametrize("fail", FAILURES)
def test_interrupted_replacement_keeps_the_older_prior(
    fail: Callable[[pytest.MonkeyPatch, Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = tmp_path / "prior"
    prior(seed=1).save_pretrained(target)
    with monkeypatch.context() as patch:
        fail(patch, target)
        with pytest.raises(Interruption):
            prior().save_pretrained(target)
    assert list(tmp_path.iterdir()) == [target]
    assert_equal_priors(ConsolidationPrior.from_pretrained(target), prior(seed=1))
    prior().save_pretrained(target)
    assert list(tmp_path.iterdir()) == [target]
    assert_equal_priors(ConsolidationPrior.from_pretrained(target), prior())


@pytest.mark.parametrize(
    "fail", [raise_while_writing, raise_while_describing, raise_while_moving_in]
)
def test_interrupted_first_save_leaves_nothing(
    fail: Callable[[pytest.MonkeyPatch, Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fail(monkeypatch, tmp_path / "prior")
    with pytest.raises(Interruption):
        prior().save_pretrained(tmp_path / "prior")
    assert list(tmp_path.iterdir()) == []


def test_impossible_shard_size_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Unit"):
        prior().save_pretrained(tmp_path / "prior", max_shard_size="big")
    assert list(tmp_path.iterdir()) == []


def _kill(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _write_a_part_and_die(tensors: Tensors, folder: Path, **_: Any) -> None:
    half = dict(list(tensors.items())[: len(tensors) // 2])
    save_file(half, folder / "prior-00001-of-00002.safetensors")
    _kill()


def save_and_die(new: ConsolidationPrior, target: Path, when: str) -> None:
    """Replace a prior and be killed on the way."""
    rename = Path.rename
    if when == "writing":
        files_module.save_torch_state_dict = _write_a_part_and_die  # type: ignore[assignment]
    elif when == "describing":
        files_module._describe = _kill
    else:
        Path.rename = lambda self, to: _kill() if to == target else rename(self, to)  # type: ignore[method-assign]
    new.save_pretrained(target)


def killed(folder: Path, when: str) -> Path:
    """Make a prior, and let a process be killed while it replaces it."""
    target = folder / "prior"
    prior(seed=1).save_pretrained(target)
    process = get_context("fork").Process(target=save_and_die, args=(prior(), target, when))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    return target


@pytest.mark.parametrize("when", ["writing", "describing"])
def test_killed_while_writing(when: str, tmp_path: Path) -> None:
    target = killed(tmp_path, when)
    assert_equal_priors(ConsolidationPrior.from_pretrained(target), prior(seed=1))
    (partial,) = set(tmp_path.iterdir()) - {target}  # no process can clean up after SIGKILL
    assert partial.name.startswith(".prior.partial-")
    assert refusal(partial).startswith("no prior at ")
    prior().save_pretrained(target)
    assert_equal_priors(ConsolidationPrior.from_pretrained(target), prior())


def test_killed_between_moving_out_and_in(tmp_path: Path) -> None:
    """The one moment without a prior in place: both are whole, beside it."""
    target = killed(tmp_path, "moving")
    assert not target.exists()
    replaced = target.with_name(".prior.replaced")
    assert_equal_priors(ConsolidationPrior.from_pretrained(replaced), prior(seed=1))
    (partial,) = target.parent.glob(".prior.partial-*")
    assert_equal_priors(ConsolidationPrior.from_pretrained(partial), prior())
    # The next attempt begins by putting the older one back, even if it then fails itself.
    with pytest.raises(KeyboardInterrupt), replace_directory(target):
        raise KeyboardInterrupt
    assert_equal_priors(ConsolidationPrior.from_pretrained(target), prior(seed=1))
    assert not replaced.exists()


# --- Saving: never over anything else ------------------------------------------------------------


def refuse_to_save(target: Path, reason: str) -> None:
    before = {p: p.read_bytes() for p in target.parent.rglob("*") if p.is_file()}
    with pytest.raises(PriorError) as error:
        prior().save_pretrained(target)
    assert str(error.value) == (
        f"{target} {reason}, which saving would delete; choose another folder"
    )
    assert {p: p.read_bytes() for p in target.parent.rglob("*") if p.is_file()} == before


def test_refuses_to_replace_another_folder(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    refuse_to_save(target, "holds thesis.txt")
    (target / "thesis.txt").unlink()
    write_config(target, {"model_type": "bert"})
    refuse_to_save(target, "holds config.json but no prior")


def test_refuses_to_delete_what_was_put_beside_a_prior(folder: Path) -> None:
    (folder / "README.md").write_text("card")
    (folder / ".git").mkdir()
    refuse_to_save(folder, "holds .git, README.md")


def test_refuses_to_replace_a_file(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("a file")
    refuse_to_save(tmp_path / "target", "is a file")


def test_saves_to_an_empty_folder_and_makes_parents(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "a" / "b"):
        prior().save_pretrained(str(target))
        assert_equal_priors(ConsolidationPrior.from_pretrained(str(target)), prior())


def test_replaces_all_files_of_an_older_prior(tmp_path: Path) -> None:
    prior(seed=1).save_pretrained(tmp_path / "prior", max_shard_size="1KB")
    prior().save_pretrained(tmp_path / "prior")
    assert {p.name for p in (tmp_path / "prior").iterdir()} == {"config.json", SHARD}
    assert [p.name for p in tmp_path.iterdir()] == ["prior"]


def test_a_link_to_a_prior_stays_a_link(tmp_path: Path) -> None:
    prior(seed=1).save_pretrained(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    prior().save_pretrained(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert {p.name for p in tmp_path.iterdir()} == {"real", "link"}
    assert_equal_priors(ConsolidationPrior.from_pretrained(tmp_path / "real"), prior())


def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    prior().save_pretrained("work/../prior")
    assert_equal_priors(ConsolidationPrior.from_pretrained("prior"), prior())
    assert {p.name for p in tmp_path.iterdir()} == {"work", "prior"}


# --- Whatever happens to the files ---------------------------------------------------------------


@cache
def _saved() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as base:
        prior().save_pretrained(base)
        return {path.name: path.read_bytes() for path in Path(base).iterdir()}


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where every value of a JSON document is."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    return [path, *(found for key, item in items for found in _paths(item, (*path, key)))]


def _replace(content: bytes, where: float, value: Any) -> bytes:
    """Replace or delete a value of a JSON document other than the document itself."""
    document = json.loads(content)
    paths = _paths(document)[1:]
    *parents, last = paths[int(where * len(paths))]
    owner = document
    for key in parents:
        owner = owner[key]
    if value is DELETED:
        del owner[last]
    else:
        owner[last] = value
    return json.dumps(document).encode()


def _flip(content: bytes, where: float, bit: int) -> bytes:
    at = int(where * len(content))
    return content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]


DELETED = object()
PLACES = st.floats(0, 1, exclude_max=True)
VALUES = st.one_of(
    st.sampled_from([DELETED, None, True, -1, 2**70, 1.5, NAN, "", "..", "\ud800", [], {}]),
    st.lists(st.integers(0, 5), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)
REPLACEMENTS = st.lists(st.tuples(PLACES, VALUES), max_size=3)
FLIPS = st.dictionaries(
    st.sampled_from(["config.json", SHARD]), st.tuples(PLACES, st.integers(0, 7)), max_size=2
)
CUTS = st.dictionaries(st.sampled_from(["config.json", SHARD]), PLACES, max_size=1)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(replacements=REPLACEMENTS, flips=FLIPS, cuts=CUTS, with_checksum=st.booleans())
def test_any_damage_is_refused_as_such_or_harmless(
    replacements: list[tuple[float, Any]],
    flips: dict[str, tuple[float, int]],
    cuts: dict[str, float],
    with_checksum: bool,
) -> None:
    contents = dict(_saved())
    for where, value in replacements:
        contents["config.json"] = _replace(contents["config.json"], where, value)
    for name, (where, bit) in flips.items():
        contents[name] = _flip(contents[name], where, bit)
    for name, where in cuts.items():
        contents[name] = contents[name][: int(where * len(contents[name]))]
    with tempfile.TemporaryDirectory() as base:
        for name, content in contents.items():
            (Path(base) / name).write_bytes(content)
        if with_checksum and not (replacements or {"config.json"} & (flips.keys() | cuts.keys())):
            update_checksum(Path(base))
        try:
            loaded = ConsolidationPrior.from_pretrained(base)
        except PriorError as error:
            assert "\n" not in str(error)
        else:
            assert loaded.fingerprint == prior().fingerprint
