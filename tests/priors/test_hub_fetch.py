"""Reading a prior from the Hub: which commit, which files, and what is said if it fails."""

import json
from pathlib import Path

import pytest
import torch
from hub_server import HubServer
from tiny.priors import assert_equal_priors, assert_equal_tensors, model, prior

from hf_kfc.errors import PriorError
from hf_kfc.hub import Source
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.priors import files as files_module
from hf_kfc.priors import store as store_module

from .hub_cases import NAME, public, push, put, repository

load = ConsolidationPrior.from_pretrained


def refusal(name: str | Path = NAME, **options: object) -> str:
    with pytest.raises(PriorError) as error:
        load(name, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_branch_tag_and_hash(hub: HubServer) -> None:
    first = push(tag="v1")
    second = push(prior(seed=1), revision="other")
    for name, revision, published, seed in [
        (NAME, None, first, 0),
        (NAME, "main", first, 0),
        (NAME, "v1", first, 0),
        (NAME, first.commit, first, 0),
        (str(first), None, first, 0),
        (NAME, "other", second, 1),
        (f"{NAME}@other", None, second, 1),
        (NAME, second.commit[:10], second, 1),
    ]:
        loaded = load(name, revision=revision)
        assert_equal_priors(loaded, public(seed))
        assert loaded.source == Source(NAME, published.commit)
        assert str(loaded.source) == f"{NAME}@{published.commit}"


def test_a_folder_or_a_fresh_prior_has_no_source(folder: Path, hub: HubServer) -> None:
    assert load(folder).source is None
    assert prior().source is None
    assert not hub.requests


def test_a_folder_goes_before_a_repository(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push()
    monkeypatch.chdir(tmp_path)
    prior(seed=1).save_pretrained(NAME)
    assert load(NAME).fingerprint == prior(seed=1).fingerprint
    assert refusal(NAME, revision="main") == (
        f"revision 'main' is given for {NAME}, which is a folder"
    )
    assert refusal(Path("org/elsewhere")).startswith("no prior at org/elsewhere: config.json is")


def test_what_is_cached_is_not_asked_for_again(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    published = push()
    for revision in (None, published.tag):
        load(NAME, revision=revision, cache_dir=tmp_path)
    before = len(hub.requests)
    load(str(published), cache_dir=tmp_path)
    assert len(hub.requests) == before
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for revision in (None, "main", published.tag, published.commit):
        loaded = load(NAME, revision=revision, cache_dir=tmp_path)
        assert_equal_priors(loaded, public())
        assert str(loaded.source) == str(published)
    assert len(hub.requests) == before
    assert refusal(revision="other", cache_dir=tmp_path) == (
        f"no prior at {NAME}: no such folder, and config.json of {NAME}@other cannot be fetched: "
        "it is not in the cache, and the Hub is offline or out of reach"
    )


# --- Some layers ---------------------------------------------------------------------------------


def shards_asked(hub: HubServer) -> set[str]:
    return {r.path.rpartition("/")[2] for r in hub.asked("GET", r"\.safetensors$")}


def test_only_the_files_of_some_layers_are_fetched(hub: HubServer) -> None:
    push(max_shard_size=200)
    part = load(NAME, layers=["query", "n?rm"])
    assert [block.name for block in part.curvature.blocks] == ["query", "norm"]
    names = ["query.weight", "query.bias", "norm.weight", "norm.bias"]
    assert_equal_tensors(part.anchor, {name: public().anchor[name] for name in names})
    whole = {block.name: block for block in public().curvature.blocks}
    for block in part.curvature.blocks:
        assert_equal_tensors(block.operator.state(), whole[block.name].operator.state())
    config = json.loads(repository(hub).resolve("main").files["config.json"].content)
    needed = {f"anchor/{name}" for name in names} | {
        "curvature/query/A",
        "curvature/query/G",
        "curvature/norm/diagonal",
    }
    holding = {n for n, file in config["files"].items() if needed & set(file["tensors"])}
    assert shards_asked(hub) == holding
    assert len(holding) < len(config["files"])
    part.check(model())
    expected = {name for name, _ in model().named_parameters() if not name.startswith("frozen")}
    assert set(part.curvature.ignored) == expected - set(names)
    assert_equal_priors(load(NAME), public())
    assert shards_asked(hub) == config["files"].keys()


def test_layers_that_share_a_factor_need_the_file_that_has_it(folder: Path) -> None:
    part = load(folder, layers=["key"])
    assert load(folder, layers="key").fingerprint == part.fingerprint
    (block,) = part.curvature.blocks
    assert torch.equal(block.operator.A, prior().curvature.blocks[1].operator.A)


def test_patterns_that_match_nothing(folder: Path) -> None:
    assert refusal(folder, layers=["que*", "head"]) == (
        f"prior at {folder}: no block is called 'head'; there are words, query, key, places, "
        "kinds, convolution, norm, scale, old, small, smalls, "
        "groups, experts, transposed"
    )
    assert refusal(folder, layers=[]) == (
        f"prior at {folder}: layers is empty; give patterns of block names, or None for all"
    )


def test_a_damaged_file_of_other_layers_does_not_matter(tmp_path: Path) -> None:
    prior().save_pretrained(tmp_path, max_shard_size=200)
    config = json.loads((tmp_path / "config.json").read_text())
    others = [
        name
        for name, file in config["files"].items()
        if not any("query" in tensor for tensor in file["tensors"])
    ]
    assert others
    for name in others:
        (tmp_path / name).write_bytes(b"")
    assert load(tmp_path, layers=["query"]).anchor.keys() == {"query.weight", "query.bias"}
    assert "is damaged (bytes 0, expected" in refusal(tmp_path)


# --- What is said --------------------------------------------------------------------------------


def test_what_is_missing(hub: HubServer) -> None:
    begin = f"no prior at {NAME}: no such folder, and "
    assert refusal() == (
        f"{begin}config.json of {NAME}@main cannot be fetched: there is no such repository, or the "
        "token may not see it"
    )
    put({"README.md": b"soon"}, NAME)
    assert refusal() == f"{begin}{NAME}@main has no config.json"
    assert refusal(revision="v2") == (
        f"{begin}config.json of {NAME}@v2 cannot be fetched: there is no such revision"
    )
    assert refusal(f"{NAME}@v2", revision="v3") == (
        f"{NAME}@v2 names a revision, and 'v3' is given; leave one"
    )
    sha = put({"config.json": b'{"model_type": "bert"}'}, NAME)
    assert refusal() == (
        f"{NAME}@{sha}/config.json does not describe a prior (no 'format': 'hf_kfc.prior')"
    )


def test_the_hub_fails(hub: HubServer) -> None:
    push()
    hub.fail("HEAD", "/resolve/", status=403, times=9)
    assert "the Hub answers 403" in refusal()
    hub.forget_faults()
    hub.cut("GET", r"\.safetensors", at="response", times=99)
    assert f"prior at {NAME}@" in refusal()
    hub.forget_faults()
    assert_equal_priors(load(NAME), public())


def test_what_is_too_large_is_not_downloaded(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    push()
    monkeypatch.setattr(store_module, "CONFIG_LIMIT", 100)
    size = len(repository(hub).resolve("main").files["config.json"].content)
    assert refusal() == (
        f"no prior at {NAME}: no such folder, and config.json of {NAME}@main has {size} bytes, "
        "expected at most 100"
    )
    monkeypatch.undo()
    assert hub.asked("GET", "/resolve/") == []


def test_a_shard_of_another_size_is_not_downloaded(hub: HubServer) -> None:
    push()
    content = repository(hub).resolve("main").files["prior.safetensors"].content
    put({"prior.safetensors": content + bytes(8)}, NAME)
    assert refusal().endswith(f"has {len(content) + 8} bytes, expected at most {len(content)}")
    assert not shards_asked(hub)


def test_a_description_that_is_too_large(folder: Path) -> None:
    with (folder / "config.json").open("ab") as file:
        file.truncate(files_module.CONFIG_LIMIT + 1)  # takes no room on the disk
    assert refusal(folder) == (
        f"{folder}/config.json has 67108865 bytes, expected at most 67108864"
    )
