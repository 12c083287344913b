import csv
import gzip
import json
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_kfc.errors import DataError
from hf_kfc.ranking.formats.documents import Document, Span
from hf_kfc.ranking.formats.notes import read_json_notes, read_note_texts, read_table_notes
from hf_kfc.ranking.problems import Problems

TEXT = "no chest\r\npain, 😀 flu"
TEXTS = {"n1": TEXT, "n2": "well"}


def note(spans: object, id_: object = "n1", text: object = TEXT) -> str:
    return json.dumps({"id": id_, "text": text, "spans": spans})


def span(start: object = 3, end: object = 14, code: object = "R07.9", **more: object) -> dict:
    return {"start": start, "end": end, "code": code, **more}


def both_ways(read, message: str, reason: str) -> list[Document]:
    """Read with an error that is raised, then with one that is counted."""
    with pytest.raises(DataError, match=f"^{message}"):
        list(read(Problems()))
    problems = Problems("count")
    found = list(read(problems))
    assert problems.counts == {reason: 1}
    return found


def test_json_notes(tmp_path):
    path, more = tmp_path / "a.jsonl", tmp_path / "b"
    path.write_text(note([span(text="chest pain"), span(18, 21, None)]) + "\n")
    more.write_bytes(gzip.compress(note([], "n2", "well").encode()))
    where = f"{path}:1"
    assert list(read_json_notes([path, more])) == [
        Document(
            "n1",
            TEXT,
            [
                Span(((3, 14),), "chest\r\npain", ("R07.9",), where),
                Span(((18, 21),), "flu", (), where),
            ],
        ),
        Document("n2", "well"),
    ]


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        (note([])[:-3], "line is not JSON", "not JSON ("),
        ("[" * 100_000, "line is not JSON", "not JSON ("),
        ('{"id": "\\ud800"}', "line is not JSON", "not JSON ("),
        ("", "line is not JSON", "not JSON ("),
        ("[1]", "note without id or text", "expected an object with the strings 'id' and"),
        (note([], 7), "note without id or text", "expected an object with the strings 'id' and"),
        (note([], ""), "note without id or text", "expected an object with the strings 'id' and"),
        (note([], "n1", None), "note without id or text", "expected an object with the strings"),
        (note([], "n0"), "note comes twice", "note 'n0' comes twice; remove one of them"),
        (note(None), "note without spans", "expected a list 'spans'; add it, empty or not"),
        (b'{"id": "caf\xe9"}', "not UTF-8", "not UTF-8; convert the file"),
    ],
)
def test_malformed_json_notes(tmp_path, line, reason, message):
    path = tmp_path / "a.jsonl"
    lines = [note([], "n0"), line, note([], "n9")]
    path.write_bytes(b"\n".join(x if isinstance(x, bytes) else x.encode() for x in lines))
    expected = re.escape(f"{path}:2: {message}")
    found = both_ways(lambda problems: read_json_notes([path], problems), expected, reason)
    assert [note.id for note in found] == ["n0", "n9"]


def test_a_code_may_be_called_concept_as_for_a_linker(tmp_path):
    span = {"start": 0, "end": 4}
    spans = [span | {"concept": "C1"}, span | {"concept": ["C1", "C2"]}, span | {"concept": None}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"id": "a", "text": "gout", "spans": spans}))
    (note,) = read_json_notes([tmp_path / "a.jsonl"])
    assert [own.concepts for own in note.spans] == [("C1",), ("C1", "C2"), ()]


def test_a_line_may_be_one_mention(tmp_path):
    lines = [
        {"doc": "7", "left": "She has", "mention": "gout", "right": ", again", "cui": "C1"},
        {"doc": "7", "mention": "the rash", "cui": None},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    first, second = (
        Span(((8, 12),), "gout", ("C1",), f"{path}:1"),
        Span(((0, 8),), "the rash", (), f"{path}:2"),
    )
    assert list(read_json_notes([path], coded=False)) == [
        Document("7#1", "She has gout , again", [first], source="7"),
        Document("7#2", "the rash", [second], source="7"),
    ]
    for bad in ({"mention": "gout"}, {"doc": "7", "mention": 3}, {**lines[0], "left": 3}):
        path.write_text(json.dumps(bad))
        with pytest.raises(DataError, match="expected an object with the strings 'id' and"):
            list(read_json_notes([path]))


@pytest.mark.parametrize(
    ("bad", "reason", "message"),
    [
        (span("3"), "malformed span", "span {'start': '3', 'end': 14, 'code': 'R07.9'} is no obj"),
        (span(True), "malformed span", "span {'start': True, "),
        (span(3.0), "malformed span", "span {'start': 3.0, "),
        (span(code=7), "malformed span", "span {'start': 3, 'end': 14, 'code': 7} is no object"),
        ({"start": 3, "end": 14}, "malformed span", "span {'start': 3, 'end': 14} is no object"),
        (span(text=1), "malformed span", "span {'start': 3, "),
        ([3, 14], "malformed span", "span [3, 14] is no object with the numbers 'start' and"),
        (span(-3, -1), "offset outside the text", "offsets -3 to -1 are not a piece of the text"),
        (span(3, 22), "offset outside the text", "offsets 3 to 22 are not a piece of the text"),
        (span(text="flu"), "mention differs from the text", "mention 'flu' is not the text at 3"),
    ],
)
def test_malformed_json_spans(tmp_path, bad, reason, message):
    path = tmp_path / "a.jsonl"
    path.write_text(note([span(0, 2), bad, span(18, 21)]))
    expected = re.escape(f"{path}:1: {message}")
    (found,) = both_ways(lambda problems: read_json_notes([path], problems), expected, reason)
    assert [span.text for span in found.spans] == ["no", "flu"]


CSV = 'note,start,end,code,mention\nn1,3,14,R07.9,"chest\npain"\n\nn2,0,4,,well\nn1,18,21,J11,flu\n'
TSV = 'end\tnote\tcode\tstart\tby\n14\tn1\tR07.9\t3\t"me\n4\tn2\t\t0\ty\n21\tn1\tJ11\t18\t"\n'


@pytest.mark.parametrize(("content", "lines"), [(CSV, [2, 6, 5]), (TSV, [2, 4, 3])])
def test_tables(tmp_path, content, lines):
    path = tmp_path / "table"
    path.write_text(content)
    first, last, other = (f"{path}:{line}" for line in lines)
    assert list(read_table_notes([path], TEXTS)) == [
        Document(
            "n1",
            TEXT,
            [
                Span(((3, 14),), "chest\r\npain", ("R07.9",), first),
                Span(((18, 21),), "flu", ("J11",), last),
            ],
        ),
        Document("n2", "well", [Span(((0, 4),), "well", (), other)]),
    ]


@pytest.mark.parametrize(
    ("row", "reason", "message"),
    [
        ("n1,3,14,R07", "malformed row", "expected 5 fields, got 4; correct or remove the row"),
        (
            "n1,3,14,R07.9,a,b",
            "malformed row",
            "expected 5 fields, got 6; correct or remove",
        ),
        ('n1,3,14,R07.9,"a"b', "malformed row", "not a row of the table (',' expected after '\"'"),
        ("n1,x,14,R07.9,a", "malformed row", "start 'x' and end '14' are not numbers; correct"),
        ("n1,3,-1,R07.9,a", "malformed row", "start '3' and end '-1' are not numbers; correct"),
        ("n8,3,14,R07.9,a", "note without text", "there is no text of note 'n8'; add it or rem"),
        ("n1,3,22,R07.9,a", "offset outside the text", "offsets 3 to 22 are not a piece of the"),
        ("n1,3,14,R07.9,a", "mention differs from the text", "mention 'a' is not the text at 3 14"),
        (b"n1,3,14,R07.9,\xe9", "not UTF-8", "not UTF-8; convert the file"),
    ],
)
def test_malformed_rows(tmp_path, row, reason, message):
    path = tmp_path / "a.csv"
    row = row if isinstance(row, bytes) else row.encode()
    path.write_bytes(CSV.encode() + row + b"\nn2,0,2,A00,we\n")
    expected = re.escape(f"{path}:7: {message}")
    found = both_ways(lambda problems: read_table_notes([path], TEXTS, problems), expected, reason)
    assert [span.text for note in found for span in note.spans][2:] == ["well", "we"]


def test_table_with_an_open_quote_names_the_row_where_it_opens(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(f'{CSV}n1,3,14,R07.9,"chest\nn2,0,2,A00,we\n')
    expected = re.escape(f"{path}:7: not a row of the table (unexpected end of data)")
    both_ways(lambda problems: read_table_notes([path], TEXTS, problems), expected, "malformed row")


@pytest.mark.parametrize(
    ("content", "missing"),
    [
        ("", "note, start, end, code"),
        ("n1,3,14,R07.9\n", "note, start, end, code"),
        ("note\tstart\tend\tcodes\n", "code"),
    ],
)
def test_table_without_a_column_is_refused_in_any_case(tmp_path, content, missing):
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"^{path}:1: no column {missing} in the header, or sev"):
        list(read_table_notes([path], TEXTS, Problems("count")))


def test_texts(tmp_path):
    (tmp_path / "n1.txt").write_bytes(TEXT.encode())
    (tmp_path / "more").write_text('{"id": "n2", "text": "well"}')
    paths = [tmp_path / "n1.txt", tmp_path / "more"]
    assert read_note_texts(paths) == TEXTS
    for name, reason in (("n2.txt", "note comes twice"), ("n3.txt", "text cannot be read")):
        (tmp_path / name).write_bytes(b"caf\xe9")
        extra = [*paths, tmp_path / name]
        expected = rf"{tmp_path / name}: (note 'n2' comes twice|not UTF-8 at byte 3); "
        assert both_ways(lambda p, extra=extra: read_note_texts(extra, p), expected, reason) == [
            "n2",
            "n1",
        ]


@st.composite
def notes(draw) -> list[Document]:
    texts = draw(st.lists(st.text(st.characters(codec="utf-8"), min_size=2, max_size=20)))
    found = [Document(f"n{number}", text) for number, text in enumerate(texts)]
    for own in found:
        for start in draw(st.sets(st.integers(0, len(own.text) - 1), min_size=1, max_size=3)):
            end = draw(st.integers(start + 1, len(own.text)))
            codes = draw(st.sampled_from([(), ("R07.9",), ("a00",)]))
            own.spans.append(Span(((start, end),), own.text[start:end], codes, ""))
    return found


def bare(notes: list[Document]) -> list[tuple]:
    return [(n.id, n.text, [(s.pieces, s.text, s.concepts) for s in n.spans]) for n in notes]


def cells(notes: list[Document]) -> list[tuple]:
    return [
        (n.id, *s.pieces[0], s.concepts[0] if s.concepts else "", s.text)
        for n in notes
        for s in n.spans
    ]


@given(notes(), st.data())
@settings(deadline=None, max_examples=60)
def test_any_notes_read_back_and_cut_short_give_no_wrong_span(own, data):
    lines = [
        note(
            [span(*s.pieces[0], s.concepts[0] if s.concepts else None) for s in n.spans],
            n.id,
            n.text,
        )
        for n in own
    ]
    with tempfile.TemporaryDirectory() as folder:
        table, jsonl = Path(folder, "a.csv"), Path(folder, "a.jsonl")
        jsonl.write_text("".join(f"{line}\n" for line in lines))
        with table.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("note", "start", "end", "code", "mention"), *cells(own)])
        texts = {n.id: n.text for n in own}
        assert bare(list(read_json_notes([jsonl]))) == bare(own)
        assert bare(list(read_table_notes([table], texts))) == bare(own)
        for path, header in ((jsonl, 0), (table, table.read_bytes().index(b"\n") + 1)):
            whole = path.read_bytes()
            path.write_bytes(whole[: data.draw(st.integers(header, len(whole)))])
        problems = Problems("count")
        cut = list(read_json_notes([jsonl], problems))
        assert bare(cut) == bare(own)[: len(cut)]
        cut = list(read_table_notes([table], texts, problems))
        assert cells(cut) == cells(own)[: len(cells(cut))]
        # One for each file; two where a table's cell breaks the line, and is cut within a letter.
        assert sum(problems.counts.values()) <= 3
