import gzip
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_kfc.errors import DataError
from hf_kfc.ranking.formats.brat import brat_documents, read_brat
from hf_kfc.ranking.formats.documents import Document, Span
from hf_kfc.ranking.problems import Problems

TEXT = "I felt drowsy,\r\nvery é\u0301 sore legs 😀 ok."
DROWSY = "T1\tADR 7 13\tdrowsy"


@pytest.fixture
def read(tmp_path):
    def run(ann: str | bytes, text: str = TEXT, problems: Problems | None = None) -> Document:
        (tmp_path / "a.txt").write_bytes(text.encode())
        (tmp_path / "a.ann").write_bytes(ann if isinstance(ann, bytes) else ann.encode())
        return read_brat(tmp_path / "a.ann", tmp_path / "a.txt", problems)

    return run


def test_all_kinds_of_lines(read, tmp_path):
    document = read(
        "#1\tAnnotatorNotes T1\tR40.0\n"  # before what it is on
        f"{DROWSY}\n"
        "T2\tADR 24 28;16 20\tsore very\n"
        "T3\tEmoji 34 35\t😀\n"
        "N1\tReference T1 ICD10CM:R40.0\tSomnolence\n"
        "N2\tReference T1 MeSH:D006970\t\n"
        "#2\tAnnotatorNotes T1\t\n"
        "R1\tCauses Arg1:T1 Arg2:T2\t\n#3\tAnnotatorNotes R1\ton a relation\n"
        "E1\tEvent:T1\nA1\tNegated E1\nM1\tNegated T1\n*\tEquiv T1 T2\n*\tEquiv T2 T1\n\n"
    )
    ann = tmp_path / "a.ann"
    assert document == Document(
        "a",
        TEXT,
        [
            Span(
                ((7, 13),),
                "drowsy",
                ("R40.0", "D006970"),
                f"{ann}:2",
                "T1",
                ("ADR",),
                notes=("R40.0", ""),
            ),
            Span(((24, 28), (16, 20)), "sore very", (), f"{ann}:3", "T2", ("ADR",)),
            Span(((34, 35),), "😀", (), f"{ann}:4", "T3", ("Emoji",)),
        ],
    )


@pytest.mark.parametrize(
    ("line", "key", "label"),
    [
        ("T1\t10011224 7 13\tdrowsy", "T1", "10011224"),
        ("T1\t271782001 | Drowsy | 7 13\tdrowsy", "T1", "271782001 | Drowsy |"),
        ("TT1\tADR 7 13\tdrowsy", "TT1", "ADR"),
        ("T1\tgrade 3 4 7 13\tdrowsy", "T1", "grade 3 4"),
        ("T1\tADR 7 13 \tdrowsy ", "T1", "ADR"),
    ],
)
def test_label_is_all_before_the_offsets(read, line, key, label):
    (span,) = read(line).spans
    assert (span.key, span.types, span.pieces) == (key, (label,), ((7, 13),))
    assert span.text == "drowsy"


def test_offsets_count_both_characters_of_a_line_end(read):
    (span,) = read("T1\tADR 7 20\tdrowsy, very").spans
    assert span.text == "drowsy,\r\nvery"


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        ("T2\tADR 16 20", "truncated or malformed line", "expected 'T1<TAB>label start end"),
        ("T2\tADR 16\tvery", "truncated or malformed line", "expected 'T1<TAB>label start end"),
        ("T2\t16 20\tvery", "truncated or malformed line", "expected 'T1<TAB>label start end"),
        ("T2\tADR 16 20;\tvery", "truncated or malformed line", "expected 'T1<TAB>label start"),
        (f"T2\tADR 1 {'9' * 5000}\tx", "truncated or malformed line", "expected 'T1<TAB>label"),
        ("T2\tADR 16 99\tvery", "offset outside the text", "offsets 16 to 99 are not a piece of"),
        ("T2\tADR 20 16\tvery", "offset outside the text", "offsets 20 to 16 are not a piece of"),
        ("T2\tADR 16 16\t", "offset outside the text", "offsets 16 to 16 are not a piece of"),
        (
            "T2\tADR 16 19;24 28\tver",
            "mention differs from the text",
            "mention 'ver' is not the text at 16 19;24 28, which is 'ver sore'; correct",
        ),
        ("N1\tReference T1 I10", "truncated or malformed line", "expected 'N1<TAB>Reference T1 "),
        ("N1\tReference T1 A:I10", "truncated or malformed line", "expected 'N1<TAB>Reference T1"),
        ("#1\tAnnotatorNotes T1", "truncated or malformed line", "expected '#1<TAB>Annotator"),
        ("N1\tReference T9 A:I10\t", "line on a missing annotation", "'N1' is on 'T9', which is"),
        ("#1\tAnnotatorNotes T9\tx", "line on a missing annotation", "'#1' is on 'T9', which is"),
        (DROWSY, "annotation comes twice", "annotation 'T1' comes twice; remove or rename it"),
        ("R1", "truncated line", "nothing follows 'R1'; correct the line"),
        ("T2 ADR 16 20\tvery", "line of unknown kind", "no line of brat starts with 'T2 ADR"),
        ("Q1\tx", "line of unknown kind", "no line of brat starts with 'Q1'; correct or remove"),
        ("\tx", "line of unknown kind", "no line of brat starts with ''; correct or remove"),
        (b"T2\tADR 16 20\tv\xe9ry", "not UTF-8", "not UTF-8; convert the file"),
    ],
)
def test_malformed_lines(read, tmp_path, line, reason, message):
    line = line if isinstance(line, bytes) else line.encode()
    ann = DROWSY.encode() + b"\n" + line + b"\nT7\tADR 0 1\tI\n"
    with pytest.raises(DataError, match=rf"^{tmp_path}/a.ann:2: {re.escape(message)}"):
        read(ann)
    problems = Problems("count")
    assert [span.key for span in read(ann, problems=problems).spans] == ["T1", "T7"]
    assert problems.counts == {reason: 1}


def test_what_is_said_of_a_malformed_span_is_not_reported_again(read):
    problems = Problems("count")
    ann = "T1\tADR 7 99\tdrowsy\nN1\tReference T1 A:I10\t\n#1\tAnnotatorNotes T1\tx\n"
    assert not read(ann, problems=problems).spans
    assert problems.counts == {"offset outside the text": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; check the path or fetch the corpus"),
        (b"caf\xe9", "not UTF-8 at byte 3; convert the file"),
        (gzip.compress(TEXT.encode(), mtime=0)[:-9], "damaged gzip data; fetch the file again"),
    ],
)
def test_text_that_cannot_be_read(tmp_path, content, message):
    ann, text = tmp_path / "a.ann", tmp_path / "a.txt"
    ann.write_text(DROWSY)
    if content is not None:
        text.write_bytes(content)
    with pytest.raises(DataError, match=rf"^{text}: {message}$"):
        read_brat(ann, text)
    problems = Problems("count")
    assert read_brat(ann, text, problems) == Document("a", "", [])
    assert problems.counts == {"text cannot be read": 1}


def test_documents_pair_their_files_by_name(tmp_path):
    for name in ("x/b.txt", "x/a.txt", "y/a.ann", "y/b.ann", "y/annotation.conf", "x/visual.conf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a")
    for name in ("y/a.ann", "y/b.ann"):
        (tmp_path / name).write_text("T1\tX 0 1\ta\n")
    found = list(brat_documents(sorted(tmp_path.rglob("*.*"))))
    assert [(document.id, len(document.spans)) for document in found] == [("a", 1), ("b", 1)]


@pytest.mark.parametrize(
    ("name", "reason", "message"),
    [
        ("x/c.ann", "file without its counterpart", "there is no c.txt to it; add it or leave"),
        ("x/c.txt", "file without its counterpart", "there is no c.ann to it; add it or leave"),
        ("x/c.pdf", "file is neither .ann nor .txt", "neither .ann nor .txt; leave it out or"),
        ("x/a.txt", "two files have one name", f"another file of this name is {{}}{'/a.txt'}; "),
    ],
)
def test_files_that_do_not_pair_up(tmp_path, name, reason, message):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "a.ann").write_text("T1\tX 0 1\ta\n")
    extra = tmp_path / name
    extra.parent.mkdir()
    extra.write_text("")
    paths = [tmp_path / "a.txt", tmp_path / "a.ann", extra]
    expected = re.escape(f"{extra}: {message.format(tmp_path)}")
    with pytest.raises(DataError, match=f"^{expected}"):
        list(brat_documents(paths))
    problems = Problems("count")
    assert [document.id for document in brat_documents(paths, problems)] == ["a"]
    assert problems.counts == {reason: 1}


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
LABELS = st.from_regex(r"[A-Za-z0-9|]+( [A-Za-z0-9|]+){0,3}", fullmatch=True)


@st.composite
def documents(draw) -> tuple[str, list[Span]]:
    text = draw(TEXTS)
    spans = []
    for number in range(draw(st.integers(0, 4))):
        offsets = st.lists(st.integers(0, len(text)), min_size=2, max_size=2, unique=True)
        pieces = tuple(tuple(sorted(piece)) for piece in draw(st.lists(offsets, min_size=1)))
        marked = " ".join(text[start:end] for start, end in pieces)
        ids = st.lists(st.from_regex(r"[A-Z][0-9]{2}(\.[0-9])?", fullmatch=True), max_size=2)
        concepts = tuple(draw(ids))
        notes = tuple(draw(st.lists(st.text("aé 1\t", max_size=9), max_size=2)))
        key = f"T{number}"
        types = (draw(LABELS),)
        spans.append(Span(pieces, marked, concepts, "", key, types, notes=notes))
    return text, spans


def written(spans: list[Span]) -> str:
    lines = []
    for span in spans:
        pieces = ";".join(f"{start} {end}" for start, end in span.pieces)
        one_line = span.text.replace("\n", " ").replace("\r", " ")
        lines.append(f"{span.key}\t{span.types[0]} {pieces}\t{one_line}")
        lines += [f"#\tAnnotatorNotes {span.key}\t{note}" for note in span.notes]
        lines += [
            f"N{span.key}{number}\tReference {span.key} ICD:{id_}\tname"
            for number, id_ in enumerate(span.concepts)
        ]
    return "".join(f"{line}\n" for line in lines)


def reread(text: str, ann: bytes, problems: Problems | None = None) -> list[Span]:
    with tempfile.TemporaryDirectory() as folder:
        ann_path, text_path = Path(folder, "a.ann"), Path(folder, "a.txt")
        ann_path.write_bytes(ann)
        text_path.write_bytes(text.encode())
        return read_brat(ann_path, text_path, problems).spans


def bare(spans: list[Span]) -> list[tuple]:
    return [(s.key, s.types, s.pieces, s.text, s.notes, s.concepts) for s in spans]


@given(documents())
@settings(deadline=None, max_examples=60)
def test_any_document_reads_back(document):
    text, spans = document
    assert bare(reread(text, written(spans).encode())) == bare(spans)


@given(documents(), st.data())
@settings(deadline=None, max_examples=60)
def test_a_file_cut_short_gives_no_wrong_span(document, data):
    text, spans = document
    whole = written(spans).encode()
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    problems = Problems("count")
    found = reread(text, cut, problems)
    own = {span.key: span for span in spans}
    for span in found:
        original = own[span.key]
        assert (span.types, span.pieces, span.text) == (
            original.types,
            original.pieces,
            original.text,
        )
        assert span.concepts == original.concepts[: len(span.concepts)]
    lost = cut.count(b"\n") + bool(cut.rpartition(b"\n")[2].strip())  # lines begun
    begun = sum(len(s.notes) + len(s.concepts) + 1 for s in found)
    assert begun + sum(problems.counts.values()) == lost


@given(documents(), st.data())
@settings(deadline=None, max_examples=60)
def test_a_changed_file_raises_or_gives_what_the_text_says(document, data):
    text, spans = document
    changed = bytearray(written(spans).encode() or b"\n")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        changed[at : at + data.draw(st.integers(0, 1))] = data.draw(st.binary(max_size=2))
        changed = changed or bytearray(b"\n")
    problems = Problems("count")
    for span in reread(text, bytes(changed), problems):
        assert span.text == " ".join(text[start:end] for start, end in span.pieces)
        assert all(0 <= start < end <= len(text) for start, end in span.pieces)
    if problems.counts:
        with pytest.raises(DataError, match=r"a\.ann:[0-9]+: "):
            reread(text, bytes(changed))
    else:
        reread(text, bytes(changed))
