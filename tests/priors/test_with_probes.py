"""Priors that carry probes: saved, loaded and refused as a whole."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hub_server import HubServer
from huggingface_hub import ModelCard
from tiny.data import lists_of_tokens, pad_lists
from tiny.models import classifier, text_llama
from tiny.priors import Tensors, assert_equal_priors
from torch import Tensor, nn

from hf_kfc import ConsolidationPrior, Probes
from hf_kfc.curvature import CurvatureArguments
from hf_kfc.errors import PriorError, ProbeError
from hf_kfc.priors.card import prior_card
from hf_kfc.priors.content import fingerprint_of
from hf_kfc.priors.files import read_prior_files, write_prior_files
from hf_kfc.priors.privacy import without_rare_inputs
from hf_kfc.probes import TokenTable

from .artefacts import WORDS
from .hub_cases import push

PROBES = "probes/"


def probes_of(model: nn.Module, **options: Any) -> Probes:
    return Probes.from_dataset(model, lists_of_tokens(), pad_lists(), **options)


def carrying(model: nn.Module | None = None, **options: Any) -> ConsolidationPrior:
    model = model or classifier()
    return ConsolidationPrior.l2(model, task="old").with_probes(probes_of(model, **options))


def chosen() -> ConsolidationPrior:
    """With few of many classes, so that every kind of tensor is there."""
    return carrying(text_llama(), top_k=3)


def assert_equal_probes(actual: Probes | None, expected: Probes | None) -> None:
    assert actual is not None
    assert expected is not None
    values, tensors = actual.state()
    expected_values, expected_tensors = expected.state()
    assert values == expected_values
    assert tensors.keys() == expected_tensors.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == expected_tensors[name].dtype
        assert torch.equal(tensor, expected_tensors[name]), name
    assert actual.fingerprint == expected.fingerprint


def test_a_prior_carries_probes_of_its_anchor_alone():
    model = classifier()
    prior, probes = ConsolidationPrior.l2(model, task="old"), probes_of(model)
    assert prior.with_probes(probes).probes is probes
    assert prior.with_probes(probes).with_probes(None).probes is None
    with torch.no_grad():
        model.classifier.bias[0] += 1
    other = ConsolidationPrior.l2(model, task="old")
    with pytest.raises(PriorError, match=r"probes are of another anchor: classifier\.bias differ"):
        other.with_probes(probes)
    without = probes.without_digests(["classifier.bias"])
    with pytest.raises(PriorError, match=r"probes are of another anchor: classifier\.bias differ"):
        other.with_probes(without)


@pytest.mark.parametrize("make", [carrying, chosen])
@pytest.mark.parametrize("shard", ["5GB", 400])
def test_probes_are_saved_and_loaded_with_the_prior(make, shard, tmp_path):
    prior = make()
    prior.save_pretrained(tmp_path / "prior", max_shard_size=shard)
    loaded = ConsolidationPrior.from_pretrained(tmp_path / "prior")
    assert_equal_priors(loaded, prior)
    assert_equal_probes(loaded.probes, prior.probes)
    assert loaded.fingerprint == prior.fingerprint
    assert loaded.fingerprint != prior.with_probes(None).fingerprint
    model = text_llama() if make is chosen else classifier()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    values = [p.probes.loss(model, range(8), pad_lists()).loss for p in (loaded, prior)]
    assert torch.equal(*values)


def test_a_prior_without_probes_has_the_files_and_the_fingerprint_that_it_had(tmp_path):
    prior = carrying().with_probes(None)
    prior.save_pretrained(tmp_path / "prior")
    config = json.loads((tmp_path / "prior" / "config.json").read_text())
    assert "probes" not in config
    del config["fingerprint"], config["checksum"]
    layout = [config["blocks"], [[n, list(t.shape)] for n, t in sorted(_stored(prior).items())]]
    digest = hashlib.sha256(json.dumps(layout).encode())
    for _, tensor in sorted(_stored(prior).items()):
        digest.update(tensor.numpy().tobytes())
    assert prior.fingerprint == digest.hexdigest()


def _stored(prior: ConsolidationPrior) -> Tensors:
    anchors = {f"anchor/{name}": value for name, value in prior.anchor.items()}
    scales = {
        f"curvature/{block.name}/scale": block.operator.state()["scale"]
        for block in prior.curvature.blocks
        if "scale" in block.operator.state()
    }
    return anchors | scales


def test_the_fingerprint_covers_rows_outputs_and_where_they_come_from():
    model = classifier()
    prior = ConsolidationPrior.l2(model, task="old")
    fewer = probes_of(model, max_probes=7)
    named = probes_of(model, source="other")
    kinds = [None, probes_of(model), fewer, named]
    assert len({prior.with_probes(probes).fingerprint for probes in kinds}) == 4


def test_what_is_made_of_a_prior_keeps_its_probes_or_says_that_it_does_not(caplog, tmp_path):
    model = classifier()
    prior = carrying(model)
    assert prior.compress(dtype=torch.bfloat16).probes is prior.probes
    assert not caplog.records
    assert prior.without("classifier.*").probes is None
    assert ConsolidationPrior.merge([prior, prior.with_probes(None)], weights=[1, 1]).probes is None
    prior.save_pretrained(tmp_path / "prior")
    assert ConsolidationPrior.from_pretrained(tmp_path / "prior", layers="bert.*").probes is None
    left_out = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    *made, read = left_out
    assert [told.split(":")[0] for told in made] == ["the 8 probes of prior 'old' are left out"] * 2
    assert read == f"the probes of prior at {tmp_path / 'prior'} are not read with a part of it"


def test_publishing_keeps_probes_without_the_sums_of_embeddings():
    model = classifier()
    rows = [{**row, "labels": 0} for row in lists_of_tokens()]

    def collate(rows: Any) -> Any:
        return {**pad_lists()(rows), "labels": torch.tensor([row["labels"] for row in rows])}

    arguments = CurvatureArguments(labels="exact")
    prior = ConsolidationPrior.estimate(
        model, rows, collate, arguments, task="old", probes=probes_of(model)
    )
    public = without_rare_inputs(prior, 4)
    assert public.probes is not None
    assert len(public.probes) == 8
    words = "bert.embeddings.word_embeddings.weight"
    assert words in prior.probes.anchor_digests
    assert not [n for n in public.probes.anchor_digests if "_embeddings.weight" in n]
    assert "classifier.weight" in public.probes.anchor_digests
    assert words not in without_rare_inputs(public, 4).probes.anchor_digests


def test_a_prior_is_pushed_with_its_probes_and_its_card_tells_of_them(hub: HubServer, caplog):
    model = classifier()
    table = TokenTable({5: 1.0, 6: 2.0}, {5: {6: 1.0}}, 12)
    probes = Probes.from_tokens(model, table, pad_lists(), count=20, length=4)
    prior = ConsolidationPrior.l2(model, task="old").with_probes(probes)
    pushed = push(prior)
    assert "will be pushed with 20 probes (tokens)" in caplog.text
    loaded = ConsolidationPrior.from_pretrained(str(pushed))
    assert len(loaded.probes) == 20
    text = ModelCard.load(pushed.repo_id).text
    for told in (
        "carries 20 inputs with what the model put out on them, 20 decisions",
        "They come from: tokens.",
        "can read the 20 probes",
        "that 12 or more examples have",
        "| pairs | 1 |",
    ):
        assert told in text
    for name, told in {
        "dataset": "what the publisher chose them from",
        "uniform tokens": "tell nothing of the data",
        "generated": "may repeat what it was trained on; 0 texts",
        "<b>`x|": "from: &lt;b&gt;\\`x\\|.",
    }.items():
        named = prior.with_probes(probes_of(model, source=name))
        assert told in prior_card(named, "org/prior")
    assert "probes" not in prior_card(prior.with_probes(None), "org/prior")


# --- Probes that anybody may have written --------------------------------------------------------

Config = dict[str, Any]
Change = Callable[[Config, Tensors], None]


def forged(folder: Path, change: Change) -> Path:
    """Write a prior with changed probes, and sums that fit the change."""
    chosen().save_pretrained(folder)
    config, tensors, _ = read_prior_files(folder)
    config, tensors = copy.deepcopy(config), {n: t.clone() for n, t in tensors.items()}
    del config["files"]
    change(config, tensors)
    config["fingerprint"] = fingerprint_of(config, tensors)
    write_prior_files(folder, config, tensors, "5GB")
    return folder


def tensor(name: str, change: Callable[[Tensor], Tensor]) -> Change:
    def own(_: Config, tensors: Tensors) -> None:
        tensors[PROBES + name] = change(tensors[PROBES + name]).clone()

    return own


def dropped(name: str) -> Change:
    def own(_: Config, tensors: Tensors) -> None:
        del tensors[PROBES + name]

    return own


def field(value: Any, *path: str) -> Change:
    def own(config: Config, _: Tensors) -> None:
        owner = config["probes"]
        for key in path[:-1]:
            owner = owner[key]
        owner[path[-1]] = value

    return own


def entry(place: int, value: float) -> Callable[[Tensor], Tensor]:
    def own(values: Tensor) -> Tensor:
        values[place] = value
        return values

    return own


def counts(size: int, decisions: int) -> Change:
    def own(_: Config, tensors: Tensors) -> None:
        tensors["probes/sizes"][0], tensors["probes/decisions"][0] = size, decisions

    return own


IDS = "rows/input_ids/values"
LENGTHS = "rows/input_ids/lengths/0"
FORGERIES: dict[str, tuple[Change, str]] = {
    "no description": (lambda config, _: config.pop("probes") and None, "tells of none"),
    "no object": (lambda config, _: config.update(probes=[1]), "expected an object"),
    "family": (field("NONE", "family"), "field family is 'NONE', expected one of CATEGORICAL"),
    "classes": (field(-1, "classes"), "field classes is -1, expected a count"),
    "fewer classes": (field(5, "classes"), "indices are not different numbers from 0 to 4"),
    "all classes": (field(0, "classes"), "the probes have no indices"),
    "column": (field({"depth": 1}, "columns", "input_ids"), "are_tensors is missing"),
    "columns": (field({}, "columns"), "the probes have no rows/input_ids"),
    "depth": (field({"depth": 10**9, "are_tensors": False}, "columns", "input_ids"), "depth is 1"),
    "flat": (field({"depth": 0, "are_tensors": False}, "columns", "input_ids"), "have no rows/inp"),
    "name of a column": (field({"depth": 0, "are_tensors": False}, "columns", "a b"), "no name"),
    "source": (field({"name": 3}, "source"), "field name is 3, expected a name"),
    "settings": (field({"a": 1e999}, "source", "settings"), "field settings is"),
    "counts": (field({"a": -1}, "source", "counts"), "field counts is"),
    "digest": (field("x", "anchor_digests", "lm_head.weight"), "expected sums by name"),
    "other anchor": (
        field("0" * 64, "anchor_digests", "lm_head.weight"),
        "of another anchor: lm_h",
    ),
    "no tokens": (dropped(IDS), f"the probes' {IDS} is missing"),
    "no scores": (dropped("scores"), "the probes' scores is missing"),
    "stranger": (
        lambda _, tensors: tensors.update({"probes/x": torch.zeros(1)}),
        "the probes have no x",
    ),
    "fewer tokens": (tensor(IDS, lambda t: t[:-1]), "column input_ids of the probes has [53]"),
    "half tokens": (tensor(IDS, lambda t: t.half()), "is torch.float16, expected bool"),
    "long lengths": (tensor(LENGTHS, lambda t: t.long()), "lengths of level 0 are not 8 counts"),
    "negative lengths": (tensor(LENGTHS, entry(0, -1)), "lengths of level 0 are not 8 counts"),
    "huge lengths": (tensor(LENGTHS, entry(0, 2**31 - 1)), "values, expected ["),
    "NaN tokens": (tensor(IDS, lambda t: t * torch.nan), "has NaN or infinite values"),
    "NaN": (tensor("scores", entry(0, torch.nan)), "scores have NaN or infinite values"),
    "no logarithms": (tensor("scores", entry(0, 1.0)), "no log-probabilities"),
    "no distribution": (tensor("rest", lambda t: t - 9), "no log-probabilities of everything"),
    "positive rest": (tensor("rest", entry(0, 1.0)), "logarithms of probabilities"),
    "double scores": (tensor("scores", lambda t: t.double()), "or are no float32"),
    "fewer scores": (tensor("scores", lambda t: t[:-3]), "scores have shape [159], expected [162]"),
    "decisions": (tensor("decisions", lambda t: t[:-1]), "decisions and sizes are not 7 counts"),
    "negative decisions": (tensor("decisions", entry(0, -3)), "decisions have no scores"),
    "free decisions": (
        counts(0, 2**31 - 1),
        "decisions have no scores",
    ),
    "huge sizes": (tensor("sizes", lambda t: torch.full_like(t, 2**31 - 1)), "scores have shape"),
    "uneven sizes": (
        counts(9, 1),
        "sizes are not one number",
    ),
    "far class": (
        tensor("indices", entry(0, 20)),
        "indices are not different numbers from 0 to 19",
    ),
    "negative class": (tensor("indices", entry(0, -1)), "indices are not different numbers"),
    "same class": (tensor("indices", lambda t: t * 0), "indices are not different numbers"),
    "long classes": (tensor("indices", lambda t: t.long()), "indices are not int32"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_probes_are_refused_by_name(name, tmp_path):
    change, told = FORGERIES[name]
    if name == "decisions":
        told = "decisions and sizes are not"
    try:
        folder = forged(tmp_path / "prior", change)
    except PriorError:
        assert name == "settings"  # no JSON holds it
        return
    with pytest.raises(PriorError) as error:
        ConsolidationPrior.from_pretrained(folder)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_forgery_without_changes_is_loaded(tmp_path):
    folder = forged(tmp_path / "prior", lambda *_: None)
    assert_equal_probes(ConsolidationPrior.from_pretrained(folder).probes, chosen().probes)


def test_any_other_word_or_tensor_is_refused_or_harmless():
    """A thousand random changes with sums that fit: an error of ours, or a prior that works."""
    model, accepted = text_llama(), 0
    values, state = chosen().probes.state()
    paths = list(_paths(values))
    for seed in range(1000):
        draw = Random(seed)
        own, outputs = copy.deepcopy(values), dict(state)
        if draw.random() < 0.5:
            *parents, last = draw.choice(paths)
            owner = own
            for key in parents:
                owner = owner[key]
            owner[last] = draw.choice(WORDS)
        else:
            name = draw.choice(sorted(outputs))
            outputs[name] = _changed(draw, outputs[name])
        try:
            probes = Probes.from_state(own, outputs)
            probes.loss(model, range(len(probes)), pad_lists())
        except ProbeError:
            continue
        accepted += 1
    assert 0 < accepted < 300


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Any:
    for key, item in value.items():
        yield (*path, key)
        if isinstance(item, dict):
            yield from _paths(item, (*path, key))


def _changed(draw: Random, value: Tensor) -> Tensor:
    value = value.clone()
    kind = draw.randrange(5)
    if kind == 0:
        return value[: draw.randrange(len(value))]
    if kind == 1:
        return torch.cat([value, value[:1]])
    if kind == 2:
        return value.to(draw.choice([torch.float64, torch.int64, torch.bool, torch.uint8]))
    if kind == 3:
        return value[None]
    value[draw.randrange(len(value))] = (
        draw.choice([0, 1, 19, 255])
        if value.dtype in (torch.uint8,)
        else draw.choice([0, -1, 2**31 - 1 if value.dtype == torch.int32 else 1e30, 3])
    )
    return value


def test_a_batch_of_forged_sizes_asks_for_no_more_memory_than_it_may():
    """One decision between a million classes pads all others."""
    values, state = carrying().probes.state()
    many = 2**21
    state["decisions"] = torch.tensor([1, 2**17] + [1] * 6, dtype=torch.int32)
    state["sizes"] = torch.tensor([many] + [1] * 7, dtype=torch.int32)
    state["scores"] = torch.cat(
        [torch.full((many,), -torch.tensor(float(many)).log()), torch.zeros(2**17 + 6)]
    )
    probes = Probes.from_state(values, state)
    with pytest.raises(ProbeError, match="take fewer at a time"):
        probes.batch(range(8), pad_lists())
    assert probes.batch([2, 3], pad_lists())[1].scores.shape == (2, 1)
    values["columns"]["input_ids"]["depth"] = 2
    state["rows/input_ids/lengths/0"] = torch.tensor([many] + [1] * 7, dtype=torch.int32)
    inner = torch.zeros(many + 7, dtype=torch.int32)
    inner[-1] = many
    state["rows/input_ids/lengths/1"] = inner
    state["rows/input_ids/values"] = torch.zeros(many, dtype=torch.uint8)
    with pytest.raises(ProbeError, match="when they are padded"):
        Probes.from_state(values, state)
