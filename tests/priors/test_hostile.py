"""Priors that somebody made to do harm: what they ask for is bounded, and what is said of them."""

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from tiny.priors import Tensors, assert_equal_priors, one_block, prior
from torch import nn

from hf_kfc.commands.inspect import spectrum_of
from hf_kfc.curvature import Block, Kronecker, Layout, LowRankKronecker
from hf_kfc.curvature.operators import relative_difference
from hf_kfc.errors import HfKfcError, PriorError
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.priors import files as files_module

from .forging import (
    SHARD,
    Config,
    Forge,
    append_block,
    forge,
    in_block,
    in_provenance,
    phrases,
    read_config,
    refusal,
    set_field,
    write_config,
)

SCREEN = "\x1b[2J\x1b[Hprior 'old' is whole (verified)\n\u202e"


def scale(n: int) -> dict[str, Any]:
    return {
        "name": f"scale {n}",
        "layout": "elementwise",
        "parameters": {f"scale {n}": []},
        "operator": "identity",
        "tensors": {"scale": "curvature/scale/scale"},
        "inputs": None,
        "input_examples": None,
    }


HOSTILE: dict[str, Forge] = {
    "name of a block": append_block(scale(1) | {"name": SCREEN, "tensors": {}}),
    "operator": in_block("norm", operator=SCREEN),
    "layout": in_block("norm", layout=SCREEN),
    "parameter": in_block("norm", parameters={SCREEN: [4]}),
    "tensor": in_block("norm", tensors={"diagonal": SCREEN}),
    "field": in_provenance(**{SCREEN: 1}),
    "metric": in_provenance(anchor_metrics={SCREEN: "1"}),
    "ignored": set_field("ignored", {SCREEN: 1}),
    "anchor": set_field("anchor", {"repo_id": SCREEN, "revision": SCREEN, "files": {}}),
}


@pytest.mark.parametrize("where", HOSTILE)
def test_no_text_of_a_prior_reaches_the_terminal_as_it_is(where: str, tmp_path: Path) -> None:
    message = refusal(forge(tmp_path, HOSTILE[where]))
    assert message.isprintable()
    assert r"\x1b[2J" in message


def test_the_name_of_a_task_does_not_either(tmp_path: Path) -> None:
    loaded = ConsolidationPrior.from_pretrained(forge(tmp_path, in_provenance(task=SCREEN)))
    with pytest.raises(PriorError) as refused:
        loaded.check(nn.Linear(2, 2))
    assert str(refused.value).isprintable()
    assert r"\x1b[2J" in str(refused.value)


def test_what_is_said_of_a_thousand_faults_is_short(tmp_path: Path) -> None:
    def many(config: Config, _: Tensors) -> None:
        config["blocks"] += [{"name": "x" * 10_000}] * 1000

    assert len(refusal(forge(tmp_path, many))) < 1000


@pytest.mark.parametrize(
    ("fields", "phrase"),
    [
        ({"num_examples": 10**300}, "field num_examples is 1000"),
        ({"min_examples": 10**400}, "field min_examples is 1000"),
        ({"dropped_inputs": {"words": 10**400}}, "field dropped_inputs is {'words': 1000"),
        ({"anchor_metrics": {"accuracy": 10**400}}, "field anchor_metrics is {'accuracy': 1000"),
        ({"merged": {"old": 10**400}}, "field merged is {'old': 1000"),
    ],
)
def test_numbers_have_a_range(fields: dict[str, Any], phrase: str, tmp_path: Path) -> None:
    (found,) = phrases(forge(tmp_path, in_provenance(**fields)))
    assert found.startswith(f"provenance: {phrase}")


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_number_that_json_reads_as_infinite(number: str, tmp_path: Path) -> None:
    prior().save_pretrained(tmp_path)
    config = read_config(tmp_path)
    config["provenance"]["anchor_metrics"]["accuracy"] = float(number)
    checksum = files_module._checksum(config)
    text = json.dumps(config | {"checksum": checksum}).replace("Infinity", "1e999")
    (tmp_path / "config.json").write_text(text)
    assert phrases(tmp_path) == [
        f"provenance: field anchor_metrics is {{'accuracy': {float(number)}}}, expected finite "
        "numbers by name"
    ]


def test_a_description_that_is_no_regular_file(folder: Path) -> None:
    config = folder / "config.json"
    config.unlink()
    os.mkfifo(config)
    assert refusal(folder) == f"{config} is no regular file"
    config.unlink()
    config.symlink_to("/dev/zero")
    assert refusal(folder) == f"{config} is no regular file"


def test_tokens_of_a_layer_that_is_no_embedding(tmp_path: Path) -> None:
    """A weight and a bias with inputs: refused in words, not by a fault of ours."""

    def tokens(config: Config, tensors: Tensors) -> None:
        for entry in config["blocks"]:
            if entry["name"] == "query":
                entry["inputs"] = "curvature/query/inputs"
        tensors["curvature/query/inputs"] = torch.arange(3)

    assert phrases(forge(tmp_path, tokens)) == ["query: only an embedding has inputs"]


@pytest.mark.parametrize("inputs", [torch.tensor(1), torch.zeros(2, 2, dtype=torch.int64)])
def test_tokens_in_another_shape(inputs: torch.Tensor, tmp_path: Path) -> None:
    def tokens(config: Config, tensors: Tensors) -> None:
        config["blocks"][0]["inputs"] = "curvature/words/inputs"
        tensors["curvature/words/inputs"] = inputs

    assert "words: inputs are not ascending numbers from 0 to 4" in phrases(forge(tmp_path, tokens))


@pytest.mark.parametrize("malformed", [False, True])
def test_a_description_of_many_blocks_takes_seconds(malformed: bool, tmp_path: Path) -> None:
    def many(config: Config, tensors: Tensors) -> None:
        config["blocks"] += [scale(n) for n in range(5_000)]
        tensors.update({f"anchor/scale {n}": torch.zeros(()) for n in range(5_000)})
        if malformed:
            config["blocks"][-1]["operator"] = 1

    forge(tmp_path, many)
    began = time.process_time()
    if malformed:
        assert "field operator is 1, expected a name" in refusal(tmp_path)
        return
    loaded = ConsolidationPrior.from_pretrained(tmp_path)
    assert len(loaded.curvature.blocks) == 5_014
    part = ConsolidationPrior.from_pretrained(tmp_path, layers=["scale *"])
    assert len(part.curvature.blocks) == 5_000
    assert time.process_time() - began < 10


def test_a_factor_is_looked_at_once_however_often_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def many(config: Config, tensors: Tensors) -> None:
        config["blocks"] *= 50

    seen: list[Kronecker] = []
    look = Kronecker.problems

    def counted(self: Kronecker, shape: tuple[int, int]) -> list[str]:
        seen.append(self)
        return look(self, shape)

    monkeypatch.setattr(Kronecker, "problems", counted)
    plain, repeated = forge(tmp_path / "plain"), forge(tmp_path / "repeated", many)
    seen.clear()
    ConsolidationPrior.from_pretrained(plain)
    once = len(seen)
    seen.clear()
    assert "two blocks have the name" in refusal(repeated)
    assert len(seen) == once > 0


@pytest.mark.parametrize(
    "fault", [SafetensorError("I/O error"), OSError(errno.ENOSPC, "No space left on device")]
)
def test_a_full_disk_is_told_and_the_older_prior_stays(
    fault: Exception, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(files_module, "save_torch_state_dict", save)
    with pytest.raises(PriorError, match=f"^{folder} is not written .*before is untouched$"):
        prior(seed=1).save_pretrained(folder)
    assert_equal_priors(ConsolidationPrior.from_pretrained(folder), prior())
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_damaged_cache_is_to_be_deleted(folder: Path, hub: object) -> None:
    published = prior().push_to_hub("org/prior", min_examples=0)
    load = ConsolidationPrior.from_pretrained
    load(str(published))
    from huggingface_hub import constants  # noqa: PLC0415 - the test's own cache

    for name, said in (("prior.safetensors", "is damaged"), ("config.json", "is not valid JSON")):
        (cached,) = Path(constants.HF_HUB_CACHE).rglob(f"snapshots/*/{name}")
        content = cached.read_bytes()
        cached.write_bytes(b"x" * len(content))
        with pytest.raises(PriorError, match=said) as refused:
            load(str(published))
        told = str(refused.value).partition("delete the cached copy ")[2].partition(" and load")[0]
        Path(told).unlink()
        load(str(published))


def test_a_file_overwritten_in_place_does_not_change_a_loaded_prior(folder: Path) -> None:
    loaded = ConsolidationPrior.from_pretrained(folder)
    with (folder / SHARD).open("r+b") as file:
        file.seek(-200, os.SEEK_END)
        file.write(bytes(200))
    assert_equal_priors(loaded, prior())
    assert loaded.fingerprint == prior().fingerprint


def test_a_sealed_description_without_files(folder: Path) -> None:
    write_config(folder, read_config(folder) | {"files": {}})
    assert "is missing" in refusal(folder)


def test_a_small_low_rank_prior_asks_for_no_large_matrix() -> None:
    """A few megabytes whose factor as a matrix would take 4 terabytes."""
    size = 10**6
    U, d = torch.rand(size, 1), torch.rand(size)
    low = LowRankKronecker(torch.rand(1, 1), torch.rand(1), U, d)
    made = one_block(Block("w", Layout.ELEMENTWISE, {"w": (size,)}, low), {"w": torch.zeros(size)})
    (block,) = made.curvature.blocks
    spectrum = spectrum_of(block.operator, block.shape)
    assert spectrum.median is None
    own = float(low.A_U.square().sum() + low.A_d.sum())
    norm = float(U.double().square().sum())
    assert spectrum.largest == pytest.approx(own * norm, rel=1e-2)  # d is small beside U Uᵀ
    assert relative_difference(low, low.scaled(1.5), block.shape) == pytest.approx(0.5, rel=1e-3)
    for ask in (
        lambda: ConsolidationPrior.merge([made, made], weights=[1, 1]),
        low.kronecker_terms,
    ):
        with pytest.raises(HfKfcError, match="is too large to form as a matrix; compress with a"):
            ask()
