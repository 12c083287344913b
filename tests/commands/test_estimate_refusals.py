"""What cannot be estimated on the command line, each told in one line."""

import json

import datasets
import peft
import pytest
from huggingface_hub import HfApi
from transformers import BertForMaskedLM, BertForSequenceClassification, GPT2LMHeadModel

from hf_kfc.commands import plugins

from .test_estimate import SENTIMENT, TEXTS, bert, gpt2, lines, tokenizer_of


@pytest.mark.parametrize(
    ("columns", "words", "said"),
    [
        ({"text": TEXTS}, (), "no column label or labels; give --label_column one of text"),
        ({"a": TEXTS, "b": TEXTS, "label": [0] * 4}, (), "give --text_columns one of a, b"),
        ({"text": TEXTS, "label": [0] * 4}, ("--text_columns", "body"), "no column body"),
        ({"text": ["a", None, "b", "c"], "label": [0] * 4}, (), "column text holds None"),
        ({"text": [["a"]] * 4, "label": [0] * 4}, (), "of conversations by tokenizer.apply_chat"),
        ({"text": TEXTS, "label": [0, 1, None, 0]}, (), "column label has no label in some examp"),
        ({"text": TEXTS, "label": [0] * 4}, ("--curvature_seed", 2**63), "give one below 2**63"),
        ({"text": TEXTS, "label": list("abcd")}, (), "label 'a', which the model does not know"),
        ({"text": TEXTS, "label": [0, 1, 2, 0]}, (), "label 2 is out of range for 2 classes"),
        ({"text": TEXTS, "label": [0, 0.5, 1, 0]}, (), "has the label 0.5, which is no class"),
        ({"text": TEXTS, "labels": [[1], [0], [1, 0], []]}, (), "labels holds [1], and the model"),
        ({"text": TEXTS, "labels": [[1, None]] * 4}, (), "holds [1, None], and the model needs a"),
        ({"text": TEXTS, "label": [0] * 4}, ("--split", "dev"), "no split 'dev'; give one of"),
        ({"text": TEXTS, "label": [0] * 4}, ("--curvature_batch_size", 0), "a whole number"),
        ({"text": TEXTS, "label": [0] * 4}, ("--device", "abacus"), "device 'abacus' is unknown"),
        ({"text": TEXTS, "label": [0] * 4}, ("--ignore", "nothing*"), "'nothing*' matches no"),
    ],
)  # fmt: skip
def test_what_cannot_be_estimated_is_one_line(saved, run, tmp_path, columns, words, said):
    tokenizer = tokenizer_of()
    model = saved(bert(BertForSequenceClassification, tokenizer, SENTIMENT), tokenizer)
    data, output = lines(tmp_path / "data.jsonl", **columns), tmp_path / "prior"
    result = run("estimate", "--model", model, "--dataset", data, "--output", output, *words)
    assert (result.status, result.out) == (1, "")
    assert result.err.splitlines()[-1].startswith("error: ")
    assert said in result.err.splitlines()[-1]
    assert not output.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.jsonl", ""),
        ("blank.jsonl", "\n\n"),
        ("list.json", "[]"),
        ("empty.txt", ""),
        ("empty.csv", ""),
        ("header.csv", "text,label\n"),
        ("empty.parquet", None),
    ],
)
def test_data_without_an_example_is_called_so(saved, run, tmp_path, name, content):
    tokenizer = tokenizer_of()
    model, data = saved(gpt2(tokenizer), tokenizer), tmp_path / name
    if content is None:
        datasets.Dataset.from_dict({"text": TEXTS}).select([]).to_parquet(data)
    else:
        data.write_text(content)
    result = run("estimate", "--model", model, "--dataset", data, "--output", tmp_path / "prior")
    assert result.status == 1
    said = f"error: {data} holds no example; give files, or a --split, with some"
    assert result.err.splitlines()[-1] == said


def test_a_model_without_its_tokenizer_is_not_read_by_an_empty_one(saved, run, tmp_path):
    tokenizer = tokenizer_of()
    model = saved(bert(BertForSequenceClassification, tokenizer, SENTIMENT), tokenizer)
    for path in model.glob("*token*"):
        path.unlink()
    data = lines(tmp_path / "data.jsonl", text=TEXTS, label=[0] * 4)
    words = ("--model", model, "--dataset", data, "--output", tmp_path / "prior")
    result = run("estimate", *words)
    assert result.status == 1
    assert f"'{model}' has no tokenizer's files; save its tokenizer there" in result.err


def test_an_adapter_is_told_from_a_model_that_cannot_be_read(saved, run, hub, tmp_path):
    tokenizer = tokenizer_of()
    model, data = saved(gpt2(tokenizer), tokenizer), lines(tmp_path / "data.jsonl", text=TEXTS)
    peft.get_peft_model(
        GPT2LMHeadModel.from_pretrained(model), peft.LoraConfig(target_modules=["c_attn"])
    ).save_pretrained(tmp_path / "adapter")
    tokenizer.save_pretrained(tmp_path / "adapter")
    words = ("estimate", "--dataset", data, "--output", tmp_path / "prior", "--model")
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo("org/adapter", private=True)
    api.upload_folder(repo_id="org/adapter", folder_path=tmp_path / "adapter")
    for name in (tmp_path / "adapter", "org/adapter"):
        result = run(*words, name)
        assert result.status == 1
        assert result.err.splitlines()[-1] == (
            f"error: '{name}' is a PEFT adapter and no whole model; merge it (merge_and_unload) "
            "and save that with its tokenizer, or load it in Python"
        )
    (tmp_path / "adapter" / "adapter_config.json").unlink()
    assert "Unrecognized model" in run(*words, tmp_path / "adapter").err


def test_a_model_of_no_known_format_is_told_what_there_is(saved, run, tmp_path):
    tokenizer = tokenizer_of()
    model = saved(bert(BertForMaskedLM, tokenizer, {}), tokenizer)
    data = lines(tmp_path / "data.jsonl", text=TEXTS)
    result = run("estimate", "--model", model, "--dataset", data, "--output", tmp_path / "prior")
    assert result.status == 1
    said = result.err.splitlines()[-1]
    assert "BertForMaskedLM with columns text is of no format that is known" in said
    assert "text classification: a sequence classifier" in said
    assert "candidate ranking" in said


def test_a_plugin_whose_requirements_are_missing_is_told(tier, run, tmp_path, monkeypatch):
    class Broken:
        name = "abacus"
        module = "hf_abacus.beads"

        def load(self) -> None:
            raise ModuleNotFoundError("hf_abacus needs beads; pip install hf_abacus[beads]")

    plugins.load_plugins.cache_clear()
    monkeypatch.setattr(plugins, "entry_points", lambda group: [Broken()])
    (tmp_path / "model").mkdir()
    config = {"model_type": "bert", "architectures": ["AbacusModel"]}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    words = ("--dataset", tier.members, "--output", tmp_path / "prior")
    result = run("estimate", "--model", tmp_path / "model", *words)
    plugins.load_plugins.cache_clear()
    assert result.status == 1
    assert "plugin 'abacus' is left out: hf_abacus needs beads" in result.err


def test_where_it_is_to_be_written_must_be_said_and_free(run, tmp_path):
    words = ("estimate", "--model", "m", "--dataset", "d")
    assert run(*words).status == 2
    result = run(*words, "--push_to_hub", "kfc")
    assert (result.status, "give ORG/NAME" in result.err) == (2, True)
    (tmp_path / "thesis.tex").write_text("all of it")
    result = run(*words, "--output", tmp_path)
    assert result.status == 1
    assert "holds thesis.tex, which saving would delete" in result.err
