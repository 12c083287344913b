"""Anchors that a prior points at instead of storing them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_repository import Blob
from hub_server import HubServer
from safetensors.torch import save
from tiny.priors import assert_equal_priors, model, prior
from torch import Tensor

from hf_kfc.curvature import Block, Curvature, Identity, Kronecker, Layout
from hf_kfc.errors import HfKfcError, PriorError
from hf_kfc.priors import ConsolidationPrior, Provenance

from .forging import read_config, write_config
from .hub_cases import MODEL, NAME, assert_published, public, push, put, put_model, repository

load = ConsolidationPrior.from_pretrained


def weights(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {name: value.detach().to(dtype) for name, value in model(seed).named_parameters()}


def pointing(sha: str, folder: Path) -> Path:
    prior().save_pretrained(folder, anchor=f"{MODEL}@{sha}")
    return folder


def refusal(folder: Path | str, **options: Any) -> str:
    with pytest.raises(PriorError) as error:
        load(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def change(folder: Path, **fields: Any) -> Path:
    """Change what the description says of the anchor, and its checksum."""
    config = read_config(folder)
    config["anchor"] |= fields
    write_config(folder, config)
    return folder


# --- Round trips ---------------------------------------------------------------------------------


def test_the_anchor_is_not_stored_twice(hub: HubServer) -> None:
    sha = put_model(weights())
    published = push(anchor=f"{MODEL}@{sha}")
    files = repository(hub).resolve("main").files
    assert b"anchor/" not in files["prior.safetensors"].content
    config = json.loads(files["config.json"].content)
    assert (config["anchor"]["repo_id"], config["anchor"]["revision"]) == (MODEL, sha)
    put_model(weights(seed=1))  # the model moves on
    assert_published(published, public())
    assert MODEL in files["README.md"].content.decode()
    assert push() == published  # the same prior, whichever way its anchor is stored


def test_only_the_needed_files_of_the_model_are_fetched(hub: HubServer, tmp_path: Path) -> None:
    values = weights()
    head = {name: values.pop(name) for name in list(values) if name.startswith("head")}
    keys = {name: values.pop(name) for name in list(values) if name.startswith("key")}
    sha = put_model(head, keys, values)
    assert sorted(put_names(hub)) == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    folder = pointing(sha, tmp_path / "prior")
    assert read_config(folder)["anchor"]["files"].keys() == {
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
    }
    assert_equal_priors(load(folder), prior())
    before = len(hub.requests)
    part = load(folder, layers=["key"], cache_dir=tmp_path / "cache")
    assert part.anchor.keys() == {"key.weight", "key.bias"}
    asked = {r.path.rpartition("/")[2] for r in hub.requests[before:]}
    assert asked == {"model-00002-of-00003.safetensors"}


def put_names(hub: HubServer) -> list[str]:
    return [n for n in repository(hub, MODEL).resolve("main").files if n.endswith(".safetensors")]


def test_offline(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha = put_model(weights())
    push(anchor=f"{MODEL}@{sha}")
    load(NAME, cache_dir=tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_equal_priors(load(NAME, cache_dir=tmp_path), public())
    shutil.rmtree(tmp_path / f"models--{MODEL.replace('/', '--')}")
    assert (
        f"model.safetensors of {MODEL}@{sha} cannot be fetched: it is not in the cache, and the "
        f"Hub is offline or out of reach (the anchor, from {MODEL}@{sha})"
    ) in refusal(NAME, cache_dir=tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_in_half_precision(dtype: torch.dtype, hub: HubServer, tmp_path: Path) -> None:
    made, stored = prior(), weights(dtype=dtype)
    anchor = {name: stored[name].float() for name in made.anchor}
    rounded = ConsolidationPrior(anchor, made.curvature, made.provenance)
    rounded.save_pretrained(tmp_path / "prior", anchor=f"{MODEL}@{put_model(stored)}")
    assert_equal_priors(load(tmp_path / "prior"), rounded)


def test_some_rows_of_an_embedding(hub: HubServer, tmp_path: Path) -> None:
    table = torch.randn(6, 3)
    rows = torch.tensor([1, 2, 5])
    operator = Kronecker(torch.rand(3), torch.eye(3))
    block = Block("words", Layout.IN_OUT, {"words.weight": (6, 3)}, operator, inputs=rows)
    made = ConsolidationPrior(
        {"words.weight": table[rows]}, Curvature((block,), 1), Provenance("old")
    )
    sha = put_model({"words.weight": table})
    made.save_pretrained(tmp_path / "prior", anchor=f"{MODEL}@{sha}")
    assert_equal_priors(load(tmp_path / "prior"), made)


# --- Refusals ------------------------------------------------------------------------------------


def test_a_model_that_is_not_the_anchor(hub: HubServer, tmp_path: Path) -> None:
    values = weights()
    values["query.weight"][0, 0] += 1e-6
    del values["norm.bias"]
    values["key.bias"] = values["key.bias"].reshape(1, 3)
    anchor = f"{MODEL}@{put_model(values)}"
    with pytest.raises(HfKfcError) as error:
        push(anchor=anchor)
    assert str(error.value) == (
        f"{anchor} is not the prior's anchor: it has another query.weight, key.bias, norm.bias or "
        "none; publish the model as it was when the prior was estimated, or leave anchor out"
    )
    assert ("model", NAME) not in hub.repositories


def test_zero_with_another_sign_is_another_anchor(hub: HubServer, tmp_path: Path) -> None:
    block = Block("w", Layout.ELEMENTWISE, {"w": (2,)}, Identity())
    made = ConsolidationPrior({"w": torch.zeros(2)}, Curvature((block,), 1), Provenance("old"))
    for value, right in ((torch.zeros(2), True), (-torch.zeros(2), False)):
        anchor = f"{MODEL}@{put_model({'w': value})}"
        if right:
            made.save_pretrained(tmp_path / "prior", anchor=anchor)
            assert_equal_priors(load(tmp_path / "prior"), made)
        else:
            with pytest.raises(PriorError, match="is not the prior's anchor"):
                made.save_pretrained(tmp_path / "prior", anchor=anchor)


@pytest.mark.parametrize(
    ("anchor", "reason"),
    [
        (MODEL, f"{MODEL} is not pinned by ''; give a commit's full hash"),
        (f"{MODEL}@main", f"{MODEL} is not pinned by 'main'; give a commit's full hash"),
        (f"../../x@{'0' * 40}", "'../../x' is no repository; give 'organisation/name'"),
        (
            f"{MODEL}@{'0' * 40}",
            f"{MODEL}@{'0' * 40} cannot be read: there is no such repository, or the token may "
            "not see it",
        ),
    ],
)
def test_a_model_that_is_not_there(
    anchor: str, reason: str, hub: HubServer, tmp_path: Path
) -> None:
    with pytest.raises(HfKfcError) as error:
        prior().save_pretrained(tmp_path / "prior", anchor=anchor)
    assert str(error.value) == reason
    assert not (tmp_path / "prior").exists()


def test_a_model_without_safetensors(hub: HubServer, tmp_path: Path) -> None:
    anchor = f"{MODEL}@{put({'pytorch_model.bin': b'pickle'})}"
    with pytest.raises(PriorError, match=r"has no model.safetensors; save the model as"):
        prior().save_pretrained(tmp_path / "prior", anchor=anchor)


def test_other_weights_at_that_commit(hub: HubServer, tmp_path: Path) -> None:
    """Whoever keeps the model's repository can rewrite its history."""
    sha = put_model(weights())
    folder = pointing(sha, tmp_path / "prior")
    there = repository(hub, MODEL).commits[sha]
    forged = there.files["model.safetensors"].content
    assert isinstance(there.files, dict)
    there.files["model.safetensors"] = Blob(forged[:-1] + bytes([forged[-1] ^ 1]), large=True)
    cache = {"cache_dir": tmp_path / "cache"}
    assert "file model.safetensors is damaged (sha256" in refusal(folder, **cache)
    assert f"(the anchor, from {MODEL}@{sha})" in refusal(folder, **cache)
    there.files["model.safetensors"] = Blob(forged + b" ", large=True)
    assert "expected at most" in refusal(folder, cache_dir=tmp_path / "other")


def test_a_forged_pointer_to_other_weights(hub: HubServer, tmp_path: Path) -> None:
    """All sums fit but the fingerprint, which covers the anchor."""
    folder = pointing(put_model(weights()), tmp_path / "prior")
    other = put_model(weights(seed=1))
    prior(seed=1).save_pretrained(tmp_path / "donor", anchor=f"{MODEL}@{other}")
    change(folder, **read_config(tmp_path / "donor")["anchor"])
    assert refusal(folder) == (
        f"prior at {folder} cannot be loaded: its content is not what was saved (config.json has "
        "another fingerprint)"
    )


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"repo_id": "../.."}, "'../..' is no repository"),
        ({"repo_id": None}, "the anchor: field repo_id is None, expected a name"),
        ({"revision": "main"}, "is not pinned by 'main'"),
        ({"revision": ["0"]}, "the anchor: field revision is ['0'], expected a commit's full hash"),
        ({"files": []}, "the anchor: field files is [], expected files by name"),
        (
            {"files": {"model.safetensors": {}}},
            "file 'model.safetensors': field bytes is missing, expected a count (the anchor, from",
        ),
        ({"files": {}}, "the anchor of words.weight is missing"),
    ],
)
def test_a_pointer_to_nothing(
    fields: dict[str, Any], reason: str, hub: HubServer, tmp_path: Path
) -> None:
    folder = pointing(put_model(weights()), tmp_path / "prior")
    assert reason in refusal(change(folder, **fields))


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "sub/model.safetensors", "pytorch_model.bin", "/etc/passwd"]
)
def test_names_of_files_that_a_model_does_not_have(
    name: str, hub: HubServer, tmp_path: Path
) -> None:
    folder = pointing(put_model(weights()), tmp_path / "prior")
    (entry,) = read_config(folder)["anchor"]["files"].values()
    before = len(hub.requests)
    assert f"file {name!r} is not one that a model has" in refusal(
        change(folder, files={name: entry})
    )
    assert len(hub.requests) == before


def test_whole_numbers_are_no_anchor(hub: HubServer, tmp_path: Path) -> None:
    folder = pointing(put_model(weights()), tmp_path / "prior")
    values = weights() | {"norm.weight": torch.ones(4, dtype=torch.int64)}
    sha = put({"model.safetensors": save(values)})
    content = repository(hub, MODEL).resolve("main").files["model.safetensors"]
    (entry,) = read_config(folder)["anchor"]["files"].values()
    entry |= {"bytes": len(content.content), "sha256": content.sha256}
    change(folder, revision=sha, files={"model.safetensors": entry})
    assert f"parameter norm.weight of {MODEL}@{sha} is torch.int64" in refusal(folder)
