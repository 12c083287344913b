import gzip
import re
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from real_data import DATA, needs_data

from hf_kfc.errors import DataError
from hf_kfc.ranking.formats.documents import Document, Span, pieces_text
from hf_kfc.ranking.formats.pubtator import read_pubtator
from hf_kfc.ranking.problems import Problems

FILE = """\
1|t|Ocular and auditory pain.
1|a|It|t|is \u2028 felt in the ear.
1\t0\t24\tOcular and auditory pain\tDisease\tD8|D9\tOcular pain|auditory pain
1\t20\t24\tpain\tT047,T184\tUMLS:C1
1\t36\t43\tfelt in\tFinding
1\tCID\tD1\tD2
1\tAssociation\t16260\tD1\tNovel
2|t|Only a title

3|t|
3|a|
"""


def span(start: int, end: int, text: str, types, concepts, where: str = "") -> Span:
    return Span(((start, end),), text, concepts, where, types=types)


def test_every_kind_of_line(tmp_path):
    plain, zipped = tmp_path / "plain", tmp_path / "zipped"
    plain.write_bytes(FILE.replace("\n", "\r\n").encode())
    zipped.write_bytes(gzip.compress(FILE.encode()))
    first, *others = read_pubtator(plain)
    assert first.text == "Ocular and auditory pain. It|t|is \u2028 felt in the ear."
    assert first.spans == [
        span(0, 24, "Ocular and auditory pain", ("Disease",), ("D8", "D9"), f"{plain}:3"),
        span(20, 24, "pain", ("T047", "T184"), ("UMLS:C1",), f"{plain}:4"),
        span(36, 43, "felt in", ("Finding",), (), f"{plain}:5"),
    ]
    assert first.remarks == ["CID relation passed over", "Association relation passed over"]
    assert others == [Document("2", "Only a title"), Document("3", " ")]
    assert [(d.id, len(d.spans)) for d in read_pubtator(zipped)] == [
        ("1", 3),
        ("2", 0),
        ("3", 0),
    ]


ABSTRACT = re.compile(r"[^|\t]+\|a\|")
HEAD = "1|t|A \U0001f600 cold\n1|a|and more\n"
END = "1\t13\t17\tmore\tDisease\tD2\n"


@pytest.mark.parametrize(
    ("lines", "reason", "message"),
    [
        (
            ["1\t4\t8"],
            "line is not an annotation",
            "expected 'id, start, end, mention, type, concept' between tabs, got '1\\t4\\t8'; ",
        ),
        (["1\t4\t8\tcold"], "line is not an annotation", "expected 'id, start"),
        (["1\t-4\t8\tcold\tDisease\tD1"], "line is not an annotation", "expected 'id, start"),
        (["1\t4\tx\tcold\tDisease\tD1"], "line is not an annotation", "expected 'id, start"),
        (["1\t4\t8\tcold\tDisease\tD1\t\t"], "line is not an annotation", "expected 'id, start"),
        (["1\t4\t" + "9" * 5000 + "\tcold\tDisease\tD1"], "line is not an annotation", "expected "),
        (["1\tCID\tD1"], "line is not an annotation", "expected 'id, start"),
        (["1"], "line is not an annotation", "expected 'id, start"),
        (
            ["1\t8\t4\tcold\tDisease\tD1"],
            "offset outside the text",
            "offsets 8 to 4 are not a piece of the text, which has 17 characters; correct the off",
        ),
        (["1\t4\t4\t\tDisease\tD1"], "offset outside the text", "offsets 4 to 4 are not a piece"),
        (
            ["1\t13\t18\tmore\tDisease\tD1"],
            "offset outside the text",
            "offsets 13 to 18 are not a piece of the text, which has 17 characters; correct the",
        ),
        (  # offsets in UTF-16 units
            ["1\t5\t9\tcold\tDisease\tD1"],
            "mention differs from the text",
            "mention 'cold' is not the text at 5 9, which is 'old '; correct the offsets, which ",
        ),
        (  # offsets in bytes
            ["1\t7\t11\tcold\tDisease\tD1"],
            "mention differs from the text",
            "mention 'cold' is not the text at 7 11, which is 'd an'; correct the offsets, which ",
        ),
        (
            ["1|a|and more"],
            "abstract not right after its title",
            "abstract of document '1' is not right after its title; put it there",
        ),
        (
            ["2\t4\t8\tcold\tDisease\tD1"],
            "line outside of its document",
            "line of document '2' outside of it; start each document with its title line 'id|t|",
        ),
        (["2|a|Abstract"], "line outside of its document", "line of document '2' outside of it"),
        (["no tab"], "line outside of its document", "line of document 'no tab' outside of it"),
    ],
)
def test_malformed_lines_raise_with_their_place_or_are_counted(tmp_path, lines, reason, message):
    file = tmp_path / "file"
    file.write_text(HEAD + "\n".join(lines) + "\n" + END)
    with pytest.raises(DataError, match="^" + re.escape(f"{file}:3: {message}")):
        list(read_pubtator(file))
    problems = Problems("count")
    (document,) = read_pubtator(file, problems)
    assert problems.counts == {reason: 1}
    assert [span.text for span in document.spans] == ["more"]


def test_an_annotation_before_the_abstract(tmp_path):
    file = tmp_path / "file"
    file.write_text("1|t|A cold\n1\t2\t6\tcold\tDisease\tD1\n1|a|and more\n")
    with pytest.raises(DataError, match=r"file:3: abstract of document '1' is not right after it"):
        list(read_pubtator(file))


def test_a_repeated_document_is_left_out_with_all_its_lines(tmp_path):
    file = tmp_path / "file"
    file.write_text(HEAD + END + "2|t|Other\n" + HEAD + END)
    with pytest.raises(DataError, match=r"file:5: document '1' comes twice; remove the repeated"):
        list(read_pubtator(file))
    problems = Problems("count")
    assert [(d.id, len(d.spans)) for d in read_pubtator(file, problems)] == [
        ("1", 1),
        ("2", 0),
    ]
    assert problems.counts == {"document comes twice": 1, "line outside of its document": 2}


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r"), max_size=20)
types = st.lists(st.sampled_from(["T047", "T116", "Disease"]), max_size=2).map(tuple)
concepts = st.sampled_from([("D1",), ("-1",), (), ("D1", "D2"), ("UMLS:C1",)])


@st.composite
def documents(draw, id_: str) -> tuple[Document, list[str]]:
    title, abstract = draw(texts), draw(st.none() | texts)
    document = Document(id_, title if abstract is None else f"{title} {abstract}")
    length = len(document.text)
    for _ in range(draw(st.integers(0, 3)) if length else 0):
        start = draw(st.integers(0, length - 1))
        end = draw(st.integers(start + 1, length))
        text = document.text[start:end]
        document.spans.append(span(start, end, text, draw(types), draw(concepts)))
    kinds = draw(st.lists(st.sampled_from(["CID", "Positive_Correlation"])))
    document.remarks = [f"{kind} relation passed over" for kind in kinds]
    lines = [f"{id_}|t|{title}"]
    lines += [] if abstract is None else [f"{id_}|a|{abstract}"]
    for own in document.spans:
        fields = (id_, *own.pieces[0], own.text, ",".join(own.types), "|".join(own.concepts))
        lines.append("\t".join(map(str, fields)))
    return document, lines + [f"{id_}\t{kind}\tD1\tD2" for kind in kinds]


corpora = st.integers(0, 3).flatmap(lambda n: st.tuples(*(documents(f"{i}") for i in range(n))))


def without_places(documents: list[Document]) -> list[Document]:
    for document in documents:
        document.spans = [replace(span, where="") for span in document.spans]
    return documents


@settings(max_examples=150, deadline=None)
@given(corpora, st.sampled_from(["\n", "\r\n"]), st.sampled_from([0, 1, 2]), st.booleans())
def test_what_is_written_is_read_back(tmp_path_factory, corpus, newline, blank, zipped):
    lines = [line for _, own in corpus for line in own + [""] * blank]
    data = newline.join(lines).encode()
    file = tmp_path_factory.getbasetemp() / "pubtator.txt"
    file.write_bytes(gzip.compress(data) if zipped else data)
    assert without_places(list(read_pubtator(file))) == [document for document, _ in corpus]


@st.composite
def damaged(draw) -> bytes:
    lines = [line for _, own in draw(corpora.filter(len)) for line in own]
    index = draw(st.integers(0, len(lines) - 1))
    kind = draw(st.sampled_from(["bytes", "cut", "drop", "repeat", "swap", "field"]))
    if kind == "drop":
        del lines[index]
    elif kind == "repeat":
        lines.insert(draw(st.integers(0, len(lines))), lines[index])
    elif kind == "swap":
        other = draw(st.integers(0, len(lines) - 1))
        lines[index], lines[other] = lines[other], lines[index]
    elif kind == "field":
        fields = lines[index].split("\t")
        place = draw(st.integers(0, len(fields) - 1))
        fields[place] = draw(st.sampled_from(["", "x", "-1", "0", "7", "99", "1\t2"]) | texts)
        lines[index] = "\t".join(fields)
    data = "\n".join(lines).encode()
    if kind in ("bytes", "cut"):
        start = draw(st.integers(0, len(data)))
        end = len(data) if kind == "cut" else draw(st.integers(start, min(start + 9, len(data))))
        return data[:start] + (draw(st.binary(max_size=5)) if kind == "bytes" else b"") + data[end:]
    return data


@settings(max_examples=400, deadline=None)
@given(damaged())
def test_no_line_of_a_damaged_file_is_lost_and_no_span_is_wrong(tmp_path_factory, data):
    assume(not data.startswith(b"\x1f\x8b"))  # that is a damaged gzip file: see test_lines.py
    file = tmp_path_factory.getbasetemp() / "damaged.txt"
    file.write_bytes(data)
    problems = Problems("count")
    read = list(read_pubtator(file, problems))
    assert len({document.id for document in read}) == len(read)
    for document in read:
        for found in document.spans:
            assert found.text
            assert pieces_text(document.text, found.pieces) == found.text
    lines = [line.decode(errors="replace").strip("\ufeff") for line in data.split(b"\n")]
    used = sum(1 + len(d.spans) + len(d.remarks) for d in read) + sum(problems.counts.values())
    given = [line for line in lines if line.strip()]
    abstracts = sum(bool(ABSTRACT.match(line)) for line in given)  # some of them are misplaced
    assert len(given) - abstracts <= used <= len(given)

    if problems.counts:
        with pytest.raises(DataError, match=rf"^{re.escape(str(file))}:[0-9]+: [^\n]+; [^\n]+$"):
            list(read_pubtator(file))
    else:
        assert list(read_pubtator(file)) == read


@needs_data
@pytest.mark.parametrize(
    ("split", "mentions", "relations"),
    [("train", 9385, 1038), ("dev", 9591, 1012), ("test", 9809, 1066)],
)
def test_real_files_are_read_without_a_problem(split, mentions, relations):
    documents = list(read_pubtator(DATA / "bc5cdr" / f"{split}_corpus.pubtator.txt.gz"))
    assert len(documents) == 500
    assert sum(len(document.spans) for document in documents) == mentions
    assert sum(len(document.remarks) for document in documents) == relations
