"""A linker as a folder and on the Hub: whole, checked, and the same afterwards."""

import json

import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel

from hf_kfc.errors import DataError, HfKfcError, HubError
from hf_kfc.hub import push_model
from hf_kfc.ranking import EntityLinker
from hf_kfc.ranking.ontologies import Ontology, write_concepts
from hf_kfc.ranking.schema import Concept, Mention

TEXT, SPANS = "She has knee pain and a jaw wound", [(8, 17), (24, 32)]


def test_a_saved_linker_says_the_same(linker, ontology, tmp_path):
    linker.add_concepts({"X1": ["wrist wound", "carpal wound"]})
    golds = [Mention("d", concept.synonyms[0], "", "", concept.id) for concept in ontology]
    linker.calibrate([*golds, Mention("d", "wrist", "", "", "")])
    linker.save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "linker_config.json").read_text())
    assert config["ontology"]["sha256"] == linker.ontology.fingerprint
    again = EntityLinker.from_pretrained(tmp_path / "saved", cache_dir=tmp_path)
    assert again(TEXT, SPANS) == linker(TEXT, SPANS)
    assert (again.settings, again.calibration) == (linker.settings, linker.calibration)
    other = EntityLinker.from_pretrained(
        tmp_path / "saved", cache_dir=tmp_path, num_candidates=2, nil_threshold=None
    )
    assert len(other(TEXT, SPANS)[0].candidates) == 2
    again.save_pretrained(tmp_path / "saved")  # an older linker is replaced
    assert not list(tmp_path.glob(".saved*"))


def test_a_ranker_alone_is_given_its_ontology(model, tokenizer, linker, tmp_path):
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "ranker")
    write_concepts(linker.ontology, tmp_path / "o.jsonl")
    (tmp_path / "o.tsv").write_text(
        "".join(f"{c.id}\t{name}\n" for c in linker.ontology for name in c.names)
    )
    settings = {"num_candidates": 6, "max_length": 40, "max_name_length": 12}
    for ontology in (tmp_path / "o.jsonl", str(tmp_path / "o.tsv"), linker.ontology):
        own = EntityLinker.from_pretrained(
            tmp_path / "ranker", ontology, cache_dir=tmp_path, **settings
        )
        assert own(TEXT, SPANS) == linker(TEXT, SPANS)
    with pytest.raises(DataError, match="ranker without an ontology; give ontology="):
        EntityLinker.from_pretrained(tmp_path / "ranker")


def test_an_encoder_whose_head_has_learnt_nothing_is_refused(tokenizer, tmp_path):
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    BertModel(config).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    assert AutoModel.from_pretrained(tmp_path / "encoder")
    with pytest.raises(HfKfcError, match=r"is no ranker: it has no classifier\.bias"):
        EntityLinker.from_pretrained(
            tmp_path / "encoder", [Concept("C1", "a"), Concept("C2", "b")], cache_dir=tmp_path
        )


def test_a_linker_goes_through_the_hub(hub, linker, tmp_path):
    pushed = linker.push_to_hub("org/linker")
    again = EntityLinker.from_pretrained("org/linker", cache_dir=tmp_path)
    assert again(TEXT, SPANS) == linker(TEXT, SPANS)
    pinned = EntityLinker.from_pretrained(f"org/linker@{pushed.commit}", cache_dir=tmp_path)
    assert pinned.ontology.fingerprint == linker.ontology.fingerprint
    assert {"linker_config.json", "ontology.jsonl", "model.safetensors"} <= set(pushed.files)
    with pytest.raises(HubError, match=r"cannot be fetched|has no config"):
        EntityLinker.from_pretrained("org/nothing")


def test_a_ranker_on_the_hub_is_given_its_ontology(hub, model, tokenizer, linker, tmp_path):
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "ranker")
    push_model(tmp_path / "ranker", "org/ranker", card="# A ranker")
    settings = {"num_candidates": 6, "max_length": 40, "max_name_length": 12}
    own = EntityLinker.from_pretrained(
        "org/ranker", linker.ontology, cache_dir=tmp_path, **settings
    )
    assert own(TEXT, SPANS) == linker(TEXT, SPANS)
    with pytest.raises(DataError, match="without an ontology"):
        EntityLinker.from_pretrained("org/ranker")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "ontology.jsonl",
            lambda s: s.replace("pain of the knee", "pain of the toe"),
            "is not the",
        ),
        ("ontology.jsonl", lambda s: s.replace("knee pain", "knee\\u001b[2J"), "printable"),
        ("ontology.jsonl", lambda s: s.replace("knee pain", "k\\u202e"), "printable"),
        ("ontology.jsonl", lambda s: s.replace('["pain of', '[["pain of', 1), "not JSON"),
        ("ontology.jsonl", lambda s: s.replace("K20", "K21"), "comes twice"),
        ("ontology.jsonl", lambda s: "", "no concept"),
        (
            "linker_config.json",
            lambda s: s.replace('"format": 1', '"format": 2'),
            "another version",
        ),
        (
            "linker_config.json",
            lambda s: s.replace('"temperature": 1.0', '"temperature": -1'),
            "temp",
        ),
        ("linker_config.json", lambda s: s.replace("1.0", "Infinity"), "temperature is inf"),
        ("linker_config.json", lambda s: s.replace("bm25", "\\u001b[2Jbm"), "retrieval is"),
        ("linker_config.json", lambda s: "[1]", "cannot be read"),
        ("linker_config.json", lambda s: "{" * 100_000, "cannot be read"),
        ("linker_config.json", lambda s: s + " " * 2**20, "expected at most"),
        (
            "linker_config.json",
            lambda s: s.replace('"calibration": null', '"calibration": {"f1": "x"}'),
            "its",
        ),
    ],
)
def test_damaged_and_hostile_files_are_one_line(linker, tmp_path, file, change, message):
    linker.save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / file
    path.write_text(change(path.read_text()))
    with pytest.raises(HfKfcError, match=message) as caught:
        EntityLinker.from_pretrained(tmp_path / "saved", cache_dir=tmp_path)
    assert str(caught.value).isprintable()


def test_what_is_not_ours_is_not_replaced(linker, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(HfKfcError, match="choose another folder"):
        linker.save_pretrained(tmp_path / "mine")
    with pytest.raises(HfKfcError, match="is not a folder"):
        linker.save_pretrained(tmp_path / "mine" / "thesis.tex" / "linker")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu,gpu", ""])
def test_a_device_that_is_not_there_is_one_line(linker, device, tmp_path):
    linker.save_pretrained(tmp_path / "saved")
    with pytest.raises(HfKfcError, match=f"^device '{device}' cannot be used") as caught:
        EntityLinker.from_pretrained(tmp_path / "saved", cache_dir=tmp_path, device=device)
    assert str(caught.value).endswith("; give cpu, or one that is there")


def test_sixteen_bits_decide_alike(linker, ontology, tmp_path):
    linker.save_pretrained(tmp_path / "saved")
    short = EntityLinker.from_pretrained(
        tmp_path / "saved", cache_dir=tmp_path, dtype="bfloat16", device="cpu"
    )
    assert {own.dtype for own in short.model.parameters()} == {torch.bfloat16}
    mentions = [Mention("d", own.synonyms[0], "", "", own.id) for own in ontology]
    one, other = (own.link_mentions(mentions) for own in (linker, short))
    assert sum(a.concept == b.concept for a, b in zip(one, other, strict=True)) >= 38  # of 40
    assert [own.probability for own in other] == pytest.approx(
        [own.probability for own in one], abs=0.1
    )
    for dtype in ("int8", "half32", "nn", torch.int64, None):
        with pytest.raises(HfKfcError, match=r"^dtype is .*; give 'float32' or 'bfloat16'$"):
            EntityLinker.from_pretrained(tmp_path / "saved", dtype=dtype)


def test_another_ontology_keeps_the_settings(linker, tmp_path):
    linker.save_pretrained(tmp_path / "saved")
    own = Ontology([Concept("A", "knee pain"), Concept("B", "jaw wound")])
    other = EntityLinker.from_pretrained(tmp_path / "saved", own, cache_dir=tmp_path)
    assert other.settings == linker.settings
    assert {c.id for c in other(TEXT, SPANS)[0].candidates} <= {"A", "B"}
