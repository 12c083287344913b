"""The examples run as they stand, without downloads, and show what they are there to show."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module(name)


def run(name, monkeypatch, tmp_path):
    return load(name, monkeypatch, tmp_path).main([])


@pytest.mark.parametrize(("name", "old", "new"), [
    ("classifier", "films", "cars"),
    ("linker", "articles", "posts"),
])  # fmt: skip
def test_the_old_task_is_kept_and_the_new_one_learnt(
    name, old, new, monkeypatch, tmp_path, capsys, caplog
):
    table = run(name, monkeypatch, tmp_path)
    before, without, with_kfc = (
        table[row] for row in (f"after {old}", f"{new}, no method", f"{new}, KFC")
    )
    assert before[old] > 0.9 > before[new] + 0.5
    assert without[old] < before[old] - 0.15, "nothing is forgotten"
    assert with_kfc[old] > without[old] + 0.3 * (before[old] - without[old])
    assert without[new] > 0.85 and with_kfc[new] > without[new] - 0.05
    assert f"{new}, KFC" in capsys.readouterr().out
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("hf_kfc")]
    assert not ours, "whoever copies the example gets its warnings"


def test_the_language_model_keeps_the_old_texts(monkeypatch, tmp_path, capsys):
    table = run("causal_lm", monkeypatch, tmp_path)
    before, without, with_kfc = table.values()
    assert before["recipes"] < 3
    assert before["directions"] > 10
    assert without["recipes"] > 4 * before["recipes"], "nothing is forgotten"
    assert with_kfc["recipes"] < 0.7 * without["recipes"]
    assert with_kfc["directions"] < 1.15 * without["directions"]
    assert "directions, KFC" in capsys.readouterr().out


def few(make):
    return lambda words, count, seed: make(words, min(count, 64), seed)


def test_a_classifier_from_a_folder(monkeypatch, tmp_path, capsys):
    example = load("classifier", monkeypatch, tmp_path)
    monkeypatch.setattr(example, "reviews", few(example.reviews))
    for part in example.tiny_model():
        part.save_pretrained("mine")
    assert list(example.main(["--model", "mine"])) == [
        "after films",
        "cars, no method",
        "cars, KFC",
    ]


def test_a_language_model_from_a_folder(monkeypatch, tmp_path, capsys):
    example = load("causal_lm", monkeypatch, tmp_path)
    model, tokenizer = example.tiny_model()
    monkeypatch.setattr(example, "texts", few(example.texts))
    model.save_pretrained("mine")
    tokenizer.save_pretrained("mine")
    assert len(example.main(["--model", "mine"])) == 3


def test_a_linker_from_a_folder(monkeypatch, tmp_path, capsys):
    example = load("linker", monkeypatch, tmp_path)
    encode = example.encode_candidates
    monkeypatch.setattr(
        example, "encode_candidates", lambda data, *rest: encode(data.select(range(64)), *rest)
    )
    tokenizer = example.train_tokenizer(["swelling of the knee"])
    model = example.CnnForMultipleChoice(
        example.CnnConfig(vocab_size=len(tokenizer), hidden_size=8)
    )
    model.save_pretrained("mine")
    tokenizer.save_pretrained("mine")
    assert len(example.main(["--model", "mine"])) == 3


def test_every_example_is_run_here():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {"classifier", "linker", "causal_lm", "kfc_from_scratch"}
