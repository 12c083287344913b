import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from ranking.commands.conftest import note, write_notes
from tiny.models import bert
from transformers import BertForSequenceClassification

from hf_kfc.ranking import EntityLinker
from hf_kfc.ranking.formats.files import read_documents, write_documents


def spans(path: Path) -> list[dict[str, object]]:
    return [
        span for line in path.read_text("utf-8").splitlines() for span in json.loads(line)["spans"]
    ]


def test_what_is_written_is_what_the_linker_says(run, place):
    result = run(
        "link", place.gold, "--model", place.linker, "--output", "out/linked.jsonl", "--json"
    )
    assert result.status == 0, result.err
    assert result.values == {
        "output": "out/linked.jsonl",
        "documents": 4,
        "mentions": 5,
        "linked": 5,
        "no_concept": 0,
        "documents_without_mentions": ["c"],
        "passed_over": {},
    }
    linker = EntityLinker.from_pretrained(place.linker)
    documents = list(read_documents(place.gold))
    said = [mention for own in linker(documents) for mention in own]
    found = spans(place.folder / "out" / "linked.jsonl")
    assert [span["code"] for span in found] == [mention.concept for mention in said]
    assert [span["probability"] for span in found] == pytest.approx([m.probability for m in said])
    assert [len(span["candidates"]) for span in found] == [len(m.candidates) for m in said]
    assert [span["type"] for span in found] == ["Disease"] * 2 + ["Sign"] * 2 + ["Disease"]
    linked = list(read_documents("out/linked.jsonl"))
    assert [(d.id, d.text) for d in linked] == [(d.id, d.text) for d in documents]


def test_documents_without_mentions_are_named(run, place):
    result = run("link", place.gold, "--model", place.linker, "--output", "linked.jsonl")
    assert "1 documents have no marked mention: c" in result.out
    assert "written to linked.jsonl" in result.out


def test_mentions_that_are_halves_of_words_are_told_of(run, place, caplog):
    notes = [json.loads(line) for line in place.gold.read_text("utf-8").splitlines()]
    for own in notes:
        for span in own["spans"]:
            span["end"] -= 1  # as who counts the last letter, not the one after it
    write_notes(Path("off.jsonl"), *notes)
    for path, told in ((place.gold, False), ("off.jsonl", True)):
        run("link", path, "--model", place.linker, "--output", "linked.jsonl")
        assert ("off.jsonl: 5 of 5 mentions begin or end inside of a word" in caplog.text) is told


def test_a_ranker_beside_its_ontology_says_the_same(run, place):
    words = ("link", place.gold, "--output")
    assert run(*words, "a.jsonl", "--model", place.linker).status == 0
    alone = run(*words, "b.jsonl", "--model", place.ranker)
    assert (alone.status, alone.err.count("\n")) == (1, 1)
    assert "ontology" in alone.err
    assert run(*words, "b.jsonl", "--model", place.ranker, "--ontology", place.names).status == 0
    first, second = spans(Path("a.jsonl")), spans(Path("b.jsonl"))
    assert [own["text"] for own in first] == [own["text"] for own in second]
    assert sum(a["code"] == b["code"] for a, b in zip(first, second, strict=True)) >= 4  # 4 of 10


def test_words_of_training_documents_are_names(run, place):
    write_notes(Path("train.jsonl"), note("t", ("zzyx", "H00"), ("qqq", "-1"), ("www", "J73")))
    notes = write_notes(Path("notes.jsonl"), note("n", ("zzyx", None)))
    words = ("link", notes, "--model", place.linker, "--output", "linked.jsonl")
    run(*words)
    assert not spans(Path("linked.jsonl"))[0].get("candidates")
    result = run(*words, "--names_from", "train.jsonl")
    assert result.status == 0, result.err
    (span,) = spans(Path("linked.jsonl"))
    assert "H00" in [candidate["id"] for candidate in span["candidates"]]


@pytest.mark.parametrize("form", ["pubtator", "brat"])
def test_other_formats_in_and_out(form, run, place):
    given, wanted = ("in.pubtator", "out.pubtator.gz") if form == "pubtator" else ("in", "out")
    write_documents(read_documents(place.gold), given)
    result = run("link", given, "--model", place.linker, "--output", wanted)
    assert result.status == 0, result.err
    assert run("link", place.gold, "--model", place.linker, "--output", "l.jsonl").status == 0

    def told(path: str) -> list[tuple[object, ...]]:
        return [
            (document.id, document.text, span.pieces, span.types, span.concepts)
            for document in sorted(read_documents(path), key=lambda document: document.id)
            for span in document.spans
        ]

    assert told(wanted) == told("l.jsonl")


def test_notes_need_no_codes_and_relations_are_told(run, place):
    text = "1|t|A head pain.\n1\t2\t11\thead pain\tDisease\t\n1\tCID\tD1\tD2\n"
    Path("a.txt").write_text(text)
    result = run("link", "a.txt", "--model", place.linker, "--output", "b.jsonl", "--json")
    assert result.values["passed_over"] == {"CID relation passed over": 1}
    bare = {"id": "n", "text": "head pain", "spans": [{"start": 0, "end": 9}]}
    notes = write_notes(Path("notes.jsonl"), bare)
    assert run("link", notes, "--model", place.linker, "--output", notes).status == 0
    assert [own["code"] for own in spans(notes)] == [spans(Path("b.jsonl"))[0]["code"]]


@pytest.mark.parametrize("output", ["linked.jsonl", "linked.pubtator", "linked"])
def test_an_output_is_never_half_written(output, run, place):
    notes = [note(f"n{number}", ("head pain", None)) for number in range(3)]
    notes[2]["spans"][0]["end"] = 999
    write_notes(Path("notes.jsonl"), *notes)
    if output == "linked.jsonl":
        Path(output).write_text("older\n")
    before = sorted(path.name for path in Path().iterdir())
    result = run("link", "notes.jsonl", "--model", place.linker, "--output", output)
    assert (result.status, result.out) == (1, "")
    assert "notes.jsonl:3: offsets" in result.err.splitlines()[-1]
    assert sorted(path.name for path in Path().iterdir()) == before


def test_what_a_format_cannot_hold_is_one_line(run, place):
    document = next(read_documents(place.gold))
    broken = replace(document, text=document.text.replace("nothing", "\nnothing"))
    write_documents([broken], "notes.jsonl")
    result = run("link", "notes.jsonl", "--model", place.linker, "--output", "out.pubtator")
    assert result.err.splitlines()[-1].startswith("error: document 'a' cannot be written in")
    assert not Path("out.pubtator").exists()


def test_a_damaged_linker_is_one_line(run, place):
    shutil.copytree(place.linker, "broken")
    Path("broken/linker_config.json").write_text("{")
    result = run("link", place.gold, "--model", "broken", "--output", "linked.jsonl")
    assert (result.status, result.out) == (1, "")
    assert result.err.splitlines()[-1].startswith("error: ")
    assert not Path("linked.jsonl").exists()


def test_a_classifier_is_no_ranker(run, place, tokenizer):
    bert(BertForSequenceClassification, num_labels=3).save_pretrained("classifier")
    tokenizer.save_pretrained("classifier")
    words = ("link", place.gold, "--ontology", place.names, "--output", "linked.jsonl")
    result = run(*words, "--model", "classifier")
    assert (result.status, result.out) == (1, "")
    assert result.err.splitlines() == [
        "error: model 'classifier' is no ranker but a BertForSequenceClassification of 3 labels; "
        "train one to rank first"
    ]


def test_development_documents_set_the_threshold(run, place):
    """Mentions of no concept are told from the others by how sure the linker is."""
    ills = [
        (f"{part} {ill}", f"{part[0].upper()}{n}{k}")
        for n, part in enumerate(["head", "heart", "knee", "lung", "skin"])
        for k, ill in enumerate(["pain", "swelling", "cancer", "wound"])
    ]
    write_notes(
        Path("dev.jsonl"),
        note("d", *ills, *((f"{words.split()[0]} fever", "NIL") for words, _ in ills)),
    )
    notes = write_notes(Path("notes.jsonl"), note("n", ("skin pain", None), ("knee fever", None)))
    words = ("link", notes, "--model", place.linker, "--output", "linked.jsonl")
    assert run(*words).status == 0
    assert all(span["code"] for span in spans(Path("linked.jsonl")))
    result = run(*words, "--development", "dev.jsonl", "--retrieval", "tfidf")
    assert result.status == 0, result.err
    sure, unsure = spans(Path("linked.jsonl"))
    assert (sure["code"], unsure["code"]) == ("S40", None)
    assert unsure["candidates"] and unsure["probability"] < sure["probability"]


@pytest.mark.parametrize(
    ("output", "said"),
    [("linked.tsv", "give --output_format"), ("full", "not empty"), (".", "not empty")],
)
def test_places_that_cannot_be_written_are_told_before_a_model_is_loaded(output, said, run, place):
    Path("full").mkdir()
    Path("full/mine").touch()
    result = run("link", place.gold, "--model", "nowhere", "--output", output)
    assert (result.status, result.out) == (1, "")
    assert said in result.err.splitlines()[-1]


def test_notes_are_linked_in_place_unless_they_have_codes(run, place):
    notes = write_notes(Path("notes.jsonl"), note("n", ("head pain", None), ("jaw wound", None)))
    words = ("link", notes, "--model", place.linker, "--output", "./notes.jsonl")
    assert run(*words).status == 0
    linked = notes.read_bytes()
    assert all(span["code"] for span in spans(notes))
    again = run(*words[:3], "nowhere", *words[4:])  # before a model is loaded
    assert (again.status, again.out, notes.read_bytes()) == (1, "", linked)
    assert again.err.splitlines()[-1] == (
        "error: notes.jsonl has concepts of its mentions already, which would be lost; give "
        "--output another file"
    )
    no_concept = write_notes(Path("notes.jsonl"), note("n", ("head pain", "-1")))
    assert run("link", no_concept, *words[2:]).status == 1


def test_right_answers_are_not_written_over(run, place):
    before = place.gold.read_bytes()
    link = ("link", place.gold, "--model", "nowhere", "--output", place.gold, "--development")
    score = ("score", place.gold, place.gold, "--html", place.gold)
    regressions = ("regressions", place.gold, place.gold, place.gold, "--html", place.gold)
    for words in ((*link, place.gold), score, regressions):
        result = run(*words)
        assert (result.status, result.out) == (1, "")
        assert "is read too, and would be lost; write to another file" in result.err
    assert place.gold.read_bytes() == before
