import json
from pathlib import Path

import pytest
from ranking.commands.conftest import note, write_notes

from hf_kfc.ranking import answers_of_documents, find_regressions, score_answers
from hf_kfc.ranking.formats.files import read_documents

SAID = [
    note("a", ("head pain", "H00"), ("jaw wound", "H00")),
    note("b", ("liver cancer", "L52"), ("knee swelling", "K21"), type_="Sign"),
    note("é", ("eye pain", None)),
]
LATER = [
    note("a", ("head pain", "H01"), ("jaw wound", "J73")),
    note("b", ("liver cancer", "H01"), ("knee swelling", None), type_="Sign"),
    note("é", ("eye pain", "E91")),
]


@pytest.fixture
def files(place) -> tuple[Path, Path]:
    said = write_notes(place.folder / "said.jsonl", *SAID)
    return said, write_notes(place.folder / "later.jsonl", *LATER)


def test_scores_as_table_json_and_page(run, place, files):
    words = ("score", files[0], place.gold, "--train", files[1], "--html", "pages/s.html")
    result = run(*words, "--json")
    assert result.status == 0, result.err
    answers = answers_of_documents(read_documents(files[0]), read_documents(place.gold))
    assert (
        result.values["overall"]["accuracy"]["value"]
        == score_answers(answers).overall["accuracy"].value
        == 0.5
    )
    assert result.values["by_frequency"]["unseen"]["mentions"] == 3  # H00, L52 and E90
    assert result.values["by_type"]["Sign"]["value"] == 1
    table = run(*words)
    assert "50.0%" in table.out
    assert "page written to pages/s.html" in table.out
    assert "said.jsonl: scores" in Path("pages/s.html").read_text("utf-8")


def test_the_ontology_names_concepts_and_joins_identifiers(run, place, files):
    words = ("score", files[0], place.gold)
    assert "wound of the jaw" not in run(*words).out
    assert "wound of the jaw" in run(*words, "--ontology", place.names).out


def test_regressions_of_files(run, place, files):
    words = ("regressions", *files, place.gold, "--html", "changed.html")
    result = run(*words, "--json")
    assert result.status == 0, result.err
    lost = [(own["document"], own["mention"], own["now"]) for own in result.values["lost"]]
    assert lost == [("a", "head pain", "H01"), ("b", "liver cancer", "H01")]
    assert [own["mention"] for own in result.values["won"]] == ["jaw wound", "knee swelling"]
    assert result.values["p_value"] == 1
    assert result.values["by_type"]["Sign"] == {"mentions": 2, "lost": 1, "won": 1}
    table = run(*words)
    assert "The doctor found[head pain]" in table.out.replace(" [", "[")
    assert "<mark>head pain</mark>" in Path("changed.html").read_text("utf-8")


def test_regressions_of_models_are_those_of_what_they_write(run, place, files):
    assert run("link", place.gold, "--model", place.linker, "--output", "linked.jsonl").status == 0
    by_file = run("regressions", files[0], "linked.jsonl", place.gold, "--json")
    by_model = run("regressions", files[0], place.linker, place.gold, "--json")
    assert by_file.status == 0, by_file.err
    assert json.loads(by_file.out) == json.loads(by_model.out)
    gold = list(read_documents(place.gold))
    own = [answers_of_documents(read_documents(path), gold) for path in (files[0], "linked.jsonl")]
    assert by_file.values["p_value"] == find_regressions(*own).p_value
    ranker = ("--ontology", place.names)
    result = run("regressions", place.ranker, place.ranker, place.gold, *ranker, "--json")
    assert (result.values["lost"], result.values["won"]) == ([], [])


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="no file system that takes no folder")
def test_a_page_that_cannot_be_written_is_told_before_any_work(run, place, files, monkeypatch):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr("hf_kfc.ranking.commands.scoring.read_documents", never)
    for words in (("score", *files), ("regressions", *files, place.gold)):
        for page, done in (("/proc/s.html", "written into"), ("/proc/a/s.html", "made")):
            result = run(*words, "--html", page)
            assert result.err.splitlines()[-1].startswith("error: /proc"), result.err
            assert f"cannot be {done} (" in result.err


def test_pages_are_never_half_written_and_places_are_checked_first(run, place, files, monkeypatch):
    Path("a-file").touch()
    assert run("score", *files, "--html", "a-file/s.html").status == 2
    Path("folder").mkdir()
    result = run("score", *files, "--html", "folder")
    assert result.err.splitlines()[-1].startswith("error: folder is a folder")
    Path("s.html").write_text("older")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_kfc.ranking.scoring.Scores.html", full)
    result = run("score", *files, "--html", "s.html")
    assert result.err.splitlines()[-1] == "error: [Errno 28] No space left on device"
    assert Path("s.html").read_text() == "older"
    assert not list(Path().glob(".s.html*"))
