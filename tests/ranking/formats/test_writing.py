"""What is written in a format is read from it again, to the letter, or is refused."""

import gzip
import json
import string
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hf_kfc.errors import DataError
from hf_kfc.ranking.formats.documents import Candidate, Document, Span, pieces_text
from hf_kfc.ranking.formats.files import format_of, read_documents, write_documents

PLACES = {"jsonl": "a.jsonl", "pubtator": "a.pubtator.gz", "brat": "folder"}
LINE = st.characters(exclude_categories=["Cs"], exclude_characters="\r\n")
ANY = st.characters(exclude_categories=["Cs"])
PLAIN = st.text(string.ascii_letters + string.digits + ":.-éß中", min_size=1, max_size=6)
NIL = st.sampled_from(["-1", "CUI-less", "NIL"])


@st.composite
def documents(draw, form):
    """Documents with all that a format has a place for; only pieces that lie in the text."""
    title = draw(st.text(LINE if form == "pubtator" else ANY, max_size=15))
    text = title
    if form == "pubtator" and draw(st.booleans()):
        text = f"{title} {draw(st.text(LINE, max_size=15))}"
    document = Document(draw(PLAIN), text)
    if form == "pubtator" and text is not title:
        document.title = len(title)
    if form == "jsonl":
        document.source = draw(st.just("") | PLAIN)
    for number in range(draw(st.integers(0, 3)) if text else 0):
        starts = st.integers(0, len(text) - 1)
        pieces = []
        for _ in range(1 if form == "pubtator" else draw(st.integers(1, 3))):
            start = draw(starts)
            pieces.append((start, draw(st.integers(start + 1, len(text)))))
        ids = tuple(draw(st.lists(PLAIN | NIL, max_size=3)))
        span = Span(tuple(pieces), pieces_text(text, tuple(pieces)), ids)
        types = draw(st.lists(PLAIN, min_size=form == "brat", max_size=1 if form == "brat" else 3))
        span = replace(span, types=tuple(types))
        if form != "pubtator":
            notes = tuple(draw(st.lists(st.text(LINE if form == "brat" else ANY), max_size=2)))
            span = replace(span, key=f"T{number + 1}", notes=notes)
        if form == "jsonl":
            chance = st.floats(0, 1)
            candidates = st.builds(Candidate, PLAIN, st.text(ANY, max_size=9), chance)
            span = replace(
                span,
                names=tuple(draw(st.lists(st.text(ANY, max_size=5), max_size=2))),
                probability=draw(st.none() | chance),
                candidates=tuple(draw(st.lists(candidates, max_size=2))),
            )
        document.spans.append(span)
    return document


def there_and_back(form: str, *written: Document) -> list[Document]:
    """Write documents, read them, and leave out the files and lines that they were read from."""
    with TemporaryDirectory() as folder:
        write_documents(written, Path(folder) / PLACES[form])
        found = list(read_documents(Path(folder) / PLACES[form]))
    for document in found:
        document.spans = [replace(span, where="") for span in document.spans]
    return found


@pytest.mark.parametrize("form", PLACES)
@given(data=st.data())
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
def test_round_trip(form, data):
    document = data.draw(documents(form))
    (found,) = there_and_back(form, document)
    assert found == document
    assert form != "pubtator" or found.title == document.title


@pytest.mark.parametrize("form", ["pubtator", "brat"])
@given(
    id_=st.text(ANY, max_size=4) | st.text("ab|\t/.\0\r\ufeff", max_size=4),
    text=st.text(ANY, min_size=1, max_size=9) | st.text("a\t\r\n \x1f\x8b\ufeff", min_size=1),
    concepts=st.lists(st.text(ANY, max_size=3) | st.text("ab|,;+ \t:", max_size=4), max_size=2),
    types=st.lists(st.text(ANY, max_size=3) | st.text("a1 ,;\t", max_size=6), max_size=2),
    key=st.sampled_from(["", "T7", "R1", "T", "T\t1"]),
)
@settings(max_examples=300)
@example(id_="a", text="a b", concepts=["D1", "D2"], types=["x 0 1;2"], key="")
def test_what_a_format_cannot_say_is_refused_and_nothing_else_is_written(
    form, id_, text, concepts, types, key
):
    span = Span(((0, 1),), text[:1], tuple(concepts), key=key, types=tuple(types))
    document = Document(id_, text, [span])
    try:
        (found,) = there_and_back(form, document)
    except DataError as error:
        assert "cannot be written in the format" in str(error)
        return
    given_key = {} if form == "pubtator" else {"key": key or "T1"}
    given_types = {} if types or form == "pubtator" else {"types": ("Mention",)}
    expected = replace(span, **{"key": ""} | given_key | given_types)
    assert found == replace(document, spans=[expected])


@pytest.mark.parametrize("form", PLACES)
def test_half_of_a_surrogate_pair_is_for_no_format(form, tmp_path):
    with pytest.raises(DataError, match="surrogate pair, which no file of text can; correct"):
        write_documents([Document("a", "b\ud800")], tmp_path / PLACES[form], form)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["pubtator", "brat"])
def test_only_json_lines_say_of_which_document_a_text_is_a_part(form):
    document = Document("7#1", "a cold", source="7")
    with pytest.raises(DataError, match="it is a part of another document; write JSON lines"):
        there_and_back(form, document)


def test_a_title_and_an_abstract_stay_where_they_are(tmp_path):
    text = (
        "7|t|A cold.\n7|a|No fever.\n7\t2\t6\tcold\tDisease\tD1|D2\n7\t11\t16\tfever\tSign\t-1\n\n"
    )
    (tmp_path / "a.txt").write_text(text)
    write_documents(read_documents(tmp_path / "a.txt"), tmp_path / "b.pubtator")
    assert (tmp_path / "b.pubtator").read_text() == text


def test_json_lines_are_what_a_person_would_write(tmp_path):
    candidates = (Candidate("C1", "cold", 0.75), Candidate("C2", "flu", 0.25))
    span = Span(((2, 6),), "cold", ("C1",), names=("cold",), probability=0.75)
    span = replace(span, types=("Sign",), candidates=candidates)
    two = Span(((0, 1), (7, 8)), "a !", ("C1", "C2"))
    write_documents([Document("n", "a cold !", [span, two])], tmp_path / "a.jsonl.gz")
    with gzip.open(tmp_path / "a.jsonl.gz") as file:
        assert json.load(file)["spans"] == [
            {
                "start": 2,
                "end": 6,
                "text": "cold",
                "code": "C1",
                "name": "cold",
                "type": "Sign",
                "probability": 0.75,
                "candidates": [
                    {"id": "C1", "name": "cold", "probability": 0.75},
                    {"id": "C2", "name": "flu", "probability": 0.25},
                ],
            },
            {"start": 0, "end": 8, "pieces": [[0, 1], [7, 8]], "text": "a !", "code": ["C1", "C2"]},
        ]


@pytest.mark.parametrize(
    "wrong",
    [
        {"pieces": []},
        {"pieces": [[0, True]]},
        {"pieces": [[0]]},
        {"code": ["C1", None]},
        {"type": {"a": 1}},
        {"probability": "0.5"},
        {"probability": float("nan")},
        {"probability": 1.5},
        {"candidates": [["C1", "cold", 0.5]]},
        {"candidates": [{"id": "C1", "name": "cold"}]},
        {"candidates": {}},
    ],
)
def test_malformed_json_predictions(tmp_path, wrong):
    span = {"start": 0, "end": 1, "code": "C1"} | wrong
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "n", "text": "ab", "spans": [span]}))
    with pytest.raises(DataError, match=r"a\.jsonl:1: span .* is no object|NaN"):
        list(read_documents(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("form", PLACES)
def test_what_was_there_stays_when_writing_fails(form, tmp_path):
    place = tmp_path / PLACES[form]

    def fail():
        yield Document("n", "a cold")
        raise DataError("the next one is damaged")

    if form != "brat":
        place.write_text("older")
    with pytest.raises(DataError, match="damaged"):
        write_documents(fail(), place)
    assert [path.name for path in tmp_path.iterdir()] == [place.name] * (form != "brat")
    assert form == "brat" or place.read_text() == "older"


def test_places_that_cannot_be_written_are_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "brat").mkdir()
    (tmp_path / "brat" / "mine").touch()
    for place, said in {
        "file/a.jsonl": "is not a folder",
        "folder.jsonl": "is not empty|is a folder",
        "brat": "is not empty",
    }.items():
        with pytest.raises(ValueError, match=said):
            write_documents([], tmp_path / place, "jsonl" if "jsonl" in place else None)


def test_formats_are_told_by_names(tmp_path):
    names = ["a.jsonl", "a.JSON", "a.jsonl.gz", "a.PubTator", "a.PubTator.txt.gz", "a", "."]
    found = [format_of(tmp_path / name) for name in names]
    assert found == ["jsonl"] * 3 + ["pubtator"] * 2 + ["brat"] * 2
    with pytest.raises(DataError, match="give --format jsonl"):
        format_of(tmp_path / "a.tsv")
    with pytest.raises(DataError, match="no such file"):
        read_documents(tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="no such folder"):
        read_documents(tmp_path / "a")
    with pytest.raises(DataError, match=r"a folder without \.ann and \.txt files"):
        read_documents(tmp_path)
