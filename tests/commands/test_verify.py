import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny.models import bert

from hf_kfc.priors import ConsolidationPrior
from hf_kfc.priors.privacy import without_rare_inputs
from hf_kfc.ranking import CnnForMultipleChoice


def test_a_prior_fits_the_model_that_it_was_made_of(tier, run):
    result = run("verify", tier.prior, tier.model)
    assert result.status == 0
    assert "7 fit CnnForMultipleChoice, 0 ignored" in result.out
    values = run("verify", tier.prior, tier.model, "--json").values
    assert values["problems"] == []
    assert values["anchor"]["differing"] == {}
    assert values["parameters"] == 7


def test_how_far_the_model_is_from_the_anchor_is_told(tier, run, changed):
    model = changed("dense.weight", "dense.bias")
    result = run("verify", tier.prior, model, "--json")
    assert result.status == 1
    anchor = result.values["anchor"]
    assert anchor["differing"].keys() == {"dense.weight", "dense.bias"}
    assert anchor["differing"]["dense.bias"] == pytest.approx(0.25)
    text = run("verify", tier.prior, model)
    assert text.status == 1
    assert "in 2 of 7 (by at most 0.25): dense.weight, dense.bias" in text.out


def test_a_model_that_is_no_number_is_told(tier, run, changed):
    result = run("verify", tier.prior, changed("dense.bias", by=float("nan")), "--json")
    assert result.status == 1
    assert result.values["anchor"]["differing"]["dense.bias"] > 1e38


def test_rows_that_a_published_prior_leaves_out_may_differ(tier, run, tmp_path):
    public = without_rare_inputs(ConsolidationPrior.from_pretrained(tier.prior))
    public.save_pretrained(tmp_path / "public")
    kept = public.curvature.blocks[0].inputs
    model = CnnForMultipleChoice.from_pretrained(tier.model)
    dropped = next(row for row in range(model.config.vocab_size) if row not in kept.tolist())
    for row, status in ((dropped, 0), (int(kept[0]), 1)):
        with torch.no_grad():
            model.embeddings.weight[row] += 1
        model.save_pretrained(tmp_path / "moved")
        assert run("verify", tmp_path / "public", tmp_path / "moved").status == status


def test_all_that_does_not_fit_is_listed(tier, run, tmp_path):
    bert().save_pretrained(tmp_path / "bert")
    result = run("verify", tier.prior, tmp_path / "bert")
    assert result.status == 1
    assert "the model has no parameter embeddings.weight" in result.out
    assert "the prior knows nothing of bert.pooler.dense.bias" in result.out


def test_another_shape_is_told_beside_the_anchors_that_can_be_compared(tier, run, tmp_path):
    model = CnnForMultipleChoice.from_pretrained(tier.model)
    model.resize_token_embeddings(model.config.vocab_size + 1)
    model.save_pretrained(tmp_path / "larger")
    values = run("verify", tier.prior, tmp_path / "larger", "--json").values
    (problem,) = values["problems"]
    assert "embeddings.weight has shape" in problem
    assert values["anchor"]["differing"] == {}


def test_a_damaged_prior_is_a_problem(tier, run, tmp_path):
    shutil.copytree(tier.prior, tmp_path / "prior")
    path = tmp_path / "prior" / "prior.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    result = run("verify", tmp_path / "prior", tier.model, "--json")
    assert result.status == 1
    (problem,) = result.values["problems"]
    assert "prior.safetensors is damaged" in problem


def test_a_model_without_all_its_weights_is_refused(tier, run, tmp_path):
    shutil.copytree(tier.model, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    weights = load_file(path)
    del weights["dense.bias"]
    save_file(weights, path, {"format": "pt"})
    result = run("verify", tier.prior, tmp_path / "model")
    assert (result.status, result.out) == (1, "")
    assert result.err.splitlines()[-1].endswith("has no weights for dense.bias; save it whole")


@pytest.mark.parametrize("architecture", ["NoSuchModel", "pipeline", "AutoConfig"])
def test_a_model_of_an_unknown_class_is_refused(architecture, tier, run, tmp_path):
    shutil.copytree(tier.model, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(config.read_text().replace("CnnForMultipleChoice", architecture))
    result = run("verify", tier.prior, tmp_path / "model")
    assert (result.status, result.out) == (1, "")
    assert f"is of class '{architecture}'" in result.err


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": 5},
        {"architectures": [None]},
        {"architectures": {"a": 1}},
        {"model_type": "nosuch\x1b[2J"},
        {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 0},
        {"model_type": "bert", "architectures": ["BertModel"], "num_attention_heads": 0},
        {"model_type": "bert", "architectures": ["BertModel"], "vocab_size": "many"},
        {"model_type": "bert", "architectures": ["BertModel"], "hidden_act": "a" * 5000},
        {"model_type": "bert", "architectures": ["BertModel"], "num_hidden_layers": 10**12},
        {"num_labels": 10**12},
        {"text_config": {"encoder_layers": 10**9}},
        {"hidden_size": -1},
        {"hidden_size": [1]},
    ],
    ids=str,
)
def test_a_config_that_anybody_wrote_is_refused_in_one_line(change, tier, run, tmp_path):
    shutil.copytree(tier.model, tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    result = run("verify", tier.prior, tmp_path / "model")
    assert (result.status, result.out) == (1, "")
    (line,) = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert line.isprintable()
    assert len(line) < 1010


def test_pickled_weights_are_not_read(tier, run, tmp_path):
    shutil.copytree(tier.model, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    model = CnnForMultipleChoice.from_pretrained(tier.model)
    torch.save(model.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    result = run("verify", tier.prior, tmp_path / "model")
    assert (result.status, result.out) == (1, "")
    assert "cannot be loaded" in result.err
