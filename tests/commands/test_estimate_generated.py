"""The prior of a language model that writes the texts itself, kept and published."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hub_server import READ_TOKEN
from huggingface_hub import HfApi
from tiny import models
from transformers import DataCollatorForTokenClassification, GPT2LMHeadModel

from hf_kfc import ConsolidationPrior, CurvatureArguments, Probes

from .test_estimate import gpt2, lines, tokenizer_of


@pytest.fixture
def writing(saved: Any) -> Path:
    """The folder of a causal model that begins texts with a token of its own."""
    tokenizer = tokenizer_of()
    tokenizer.bos_token = tokenizer.cls_token
    folder: Path = saved(models.gpt2(vocab_size=len(tokenizer), n_positions=20), tokenizer)
    return folder


def test_a_language_model_writes_what_its_prior_is_of(saved, run, tmp_path):
    tokenizer = tokenizer_of()
    tokenizer.bos_token = tokenizer.cls_token
    model = saved(gpt2(tokenizer), tokenizer)
    words = ("estimate", "--model", model, "--generate", 6, "--max_length", 9)
    result = run(*words, "--output", tmp_path / "prior", "--json")
    assert result.status == 0, result.err
    prior = ConsolidationPrior.from_pretrained(tmp_path / "prior")
    assert prior.task == "general"
    assert prior.curvature.num_examples == len(prior.probes) == 6
    assert prior.probes.provenance.name == "generated"
    rows = [{**row, "labels": row["input_ids"]} for row in prior.probes.rows]
    expected = ConsolidationPrior.estimate(
        GPT2LMHeadModel.from_pretrained(model),
        rows,
        DataCollatorForTokenClassification(tokenizer_of()),
        CurvatureArguments(),
        task="general",
    )
    for own, other in zip(prior.curvature.blocks, expected.curvature.blocks, strict=True):
        theirs = other.operator.state()
        assert all(torch.equal(value, theirs[n]) for n, value in own.operator.state().items())
    both = run(*words, "--dataset", "d", "--output", tmp_path / "other")
    assert both.status == 2
    assert "not allowed with" in both.err
    for wrong in ("0", "-1", "many"):
        assert run("estimate", "--model", model, "--generate", wrong, "--output", "p").status == 2


def test_what_the_model_writes_is_published_whole(writing, run, hub, tmp_path, monkeypatch):
    """Its tokens are rarer and its texts fewer than those of data that is kept secret."""
    monkeypatch.chdir(tmp_path)
    words = ("estimate", "--model", writing, "--generate", 6, "--json")
    result = run(*words, "--push_to_hub", "org/general")
    assert result.status == 0, result.err
    kept = ConsolidationPrior.from_pretrained("general")
    there = ConsolidationPrior.from_pretrained("org/general", revision="main")
    assert result.values["published"] == str(there.source)
    assert there.anchor.keys() == kept.anchor.keys()
    assert all(torch.equal(value, there.anchor[name]) for name, value in kept.anchor.items())
    assert len(kept.probes) == len(there.probes) == 6
    card = str(hub.repositories["model", "org/general"].resolve("main").files["README.md"].content)
    for text in (card, Path("general/README.md").read_text()):
        assert "The model wrote all texts itself; the curvature is of those" in text
        assert "of examples only the probes below are here" in text
        assert "training examples" not in text
        assert "had learnt" not in text


def test_texts_that_repeat_given_ones_are_dropped(writing, run, tmp_path):
    words = ("estimate", "--model", writing, "--generate", 6, "--json", "--output")
    assert run(*words, tmp_path / "free").status == 0
    probes = ConsolidationPrior.from_pretrained(tmp_path / "free").probes
    long = [row["input_ids"] for row in probes.rows if len(row["input_ids"]) > 13]
    assert long
    known = lines(tmp_path / "known.jsonl", input_ids=[[*ids[1:], 7] for ids in long])
    result = run(*words, tmp_path / "checked", "--drop_repeats_of", known, "--split", "train")
    assert result.status == 0, result.err
    checked = ConsolidationPrior.from_pretrained(tmp_path / "checked").probes
    assert checked.provenance.counts["compared with"] == len(long)
    assert checked.provenance.counts["repeats"] >= len(long)
    assert not any(row["input_ids"] in long for row in checked.rows)
    card = (tmp_path / "checked" / "README.md").read_text()
    assert f"{len(long)} given ones were dropped" in card


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--generate", 2, "--probes", 2), "--probes: of --generate all texts are probes"),
        (
            ("--generate", 2, "--text_columns", "a", "--label_column", "b", "--said_twice"),
            "--said_twice, --text_columns, --label_column: of --generate",
        ),
        (("--generate", 2, "--config", "c", "--split", "test"), "--config, --split: of --generate"),
        (("--dataset", "d", "--drop_repeats_of", "d"), "--drop_repeats_of: it is of --generate"),
    ],
)
def test_options_without_a_say_are_refused_before_any_work(run, tmp_path, words, said):
    result = run("estimate", "--model", "nowhere", *words, "--output", tmp_path / "prior")
    assert result.status == 1
    assert said in result.err


@pytest.mark.parametrize("longest", [(), ("--max_length", 21)])
def test_what_the_model_writes_fits_its_positions(writing, run, tmp_path, longest):
    words = ("estimate", "--model", writing, "--generate", 6, *longest)
    result = run(*words, "--output", tmp_path / "prior")
    assert result.status == 0, result.err
    rows = ConsolidationPrior.from_pretrained(tmp_path / "prior").probes.rows
    assert max(len(row["input_ids"]) for row in rows) == 20


def test_a_push_that_cannot_work_is_refused_before_the_work(
    writing, run, hub, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Probes, "generate", None)
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo("org/weights", private=True)
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="model.bin", repo_id="org/weights")
    words = ("estimate", "--model", writing, "--generate", 6, "--push_to_hub")
    result = run(*words, "org/weights")
    assert result.status == 1
    assert "org/weights holds model.bin and no prior" in result.err
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    result = run(*words, "org/general")
    assert result.status == 1
    assert "org/general: a prior cannot be pushed there (" in result.err
    assert not Path("general").exists()


def test_a_prior_whose_push_fails_is_kept_and_pushed_from_there(
    writing, run, hub, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    hub.fail("POST", "/commit/", status=403, times=9)
    words = ("estimate", "--model", writing, "--generate", 6, "--push_to_hub", "org/general")
    result = run(*words)
    assert result.status == 1
    command = result.err.strip().partition("this publishes it without another estimate: hf-kfc ")[2]
    assert command, result.err
    hub.forget_faults()
    again = run(*command.split())
    assert again.status == 0, again.err
    assert len(ConsolidationPrior.from_pretrained("org/general").probes) == 6
