import io
import re
import tarfile
from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from real_data import DATA, needs_data

from hf_kfc.errors import DataError
from hf_kfc.ranking.checks import check_examples
from hf_kfc.ranking.corpora.codiesp import LABELS, CodiEsp, _read_codiesp, _read_codiesp_texts
from hf_kfc.ranking.formats.documents import Document
from hf_kfc.ranking.problems import Problems

TEXT = "Niña con tos, fiebre (alta) y dolor. Rx tórax."
FOLDER = DATA / "codiesp"
FILES = {
    "train": FOLDER / "trainX.tsv",
    "validation": FOLDER / "devX.tsv",
    "test": FOLDER / "testX.tsv",
    "texts": FOLDER / "text_files_es_en.tar.gz",
}


def row(evidence: str, offsets: str, code: str = "r05", label: str = LABELS[0]) -> str:
    return f"n1\t{label}\t{code}\t{evidence}\t{offsets}"


def archive(path: Path, texts: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in texts.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def read(tmp_path):
    def run(
        *lines: str, label: str = "DIAGNOSTICO", problems: Problems | None = None
    ) -> list[Document]:
        (tmp_path / "X.tsv").write_text("\n".join(lines))
        return list(_read_codiesp(tmp_path / "X.tsv", {"n1": TEXT}, label, problems or Problems()))

    return run


def test_spans_of_a_label(read):
    lines = [row("tos", "9 12"), row("Rx tórax", "37 45", "bw03zzz", LABELS[1])]
    (note,) = read(*lines)
    assert (note.id, note.text, len(note.spans)) == ("n1", TEXT, 1)
    assert (note.spans[0].text, note.spans[0].concepts) == ("tos", ("r05",))
    (note,) = read(*lines, label=LABELS[1])
    assert (note.spans[0].text, note.spans[0].concepts) == ("Rx tórax", ("bw03zzz",))


@pytest.mark.parametrize(
    ("evidence", "offsets", "pieces", "text", "remarks"),
    [
        ("fiebre dolor", "14 20;30 35", ((14, 20), (30, 35)), "fiebre dolor", ()),
        ("dolor fiebre", "30 35;14 20", ((30, 35), (14, 20)), "dolor fiebre", ()),
        ("tos", "5 5;9 12", ((9, 12),), "tos", ("empty piece left out",)),
        ("tos", "9 13", ((9, 13),), "tos,", ("evidence differs from the text in punctuation",)),
    ],
)
def test_what_is_put_right(read, evidence, offsets, pieces, text, remarks):
    ((span,),) = (note.spans for note in read(row(evidence, offsets)))
    assert (span.pieces, span.text, span.remarks) == (pieces, text, remarks)


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        ("n1\tDIAGNOSTICO\tr05\ttos", "truncated or malformed row", "expected 'note, label, cod"),
        (row("tos", "9 12;"), "truncated or malformed row", "expected 'note, label, code, evid"),
        (row("tos", "9"), "truncated or malformed row", "expected 'note, label, code, evidence"),
        (row("tos", "9 12", " "), "truncated or malformed row", "expected 'note, label, code, "),
        (row("tos", "9 12", label="X"), "truncated or malformed row", "expected 'note, label, "),
        (row("tos", "9 1"), "offset outside the text", "offsets 9 to 1 are not a piece of the"),
        (row("tos", "9 47"), "offset outside the text", "offsets 9 to 47 are not a piece of the"),
        (row("to", "9 12"), "mention differs from the text", "mention 'to' is not the text at 9"),
        (row("tos", "9 9"), "mention differs from the text", "mention 'tos' is not the text at "),
        (row("a", "0 1").replace("n1", "n2"), "note without text", "there is no text of note 'n2'"),
    ],
)
def test_malformed_rows(read, tmp_path, line, reason, message):
    expected = re.escape(f"{tmp_path / 'X.tsv'}:2: {message}")
    lines = [row("tos", "9 12"), line, row("dolor", "30 35")]
    with pytest.raises(DataError, match=f"^{expected}"):
        read(*lines)
    problems = Problems("count")
    (note,) = read(*lines, problems=problems)
    assert [span.text for span in note.spans] == ["tos", "dolor"]
    assert problems.counts == {reason: 1}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_texts_are_the_spanish_ones(tmp_path, mode):
    contents = {
        "train/text_files/n1.txt": TEXT.encode(),
        "train/text_files_en/n1.txt": b"Girl with cough",
        "dev/text_files/n2.txt": b"tos\r\n",
    }
    path = archive(tmp_path / "texts", contents, mode)
    assert _read_codiesp_texts(path, Problems()) == {"n1": TEXT, "n2": "tos\r\n"}


def test_malformed_texts(tmp_path):
    contents = {"a/text_files/n1.txt": b"tos", "b/text_files/n1.txt": b"tos"}
    path = archive(tmp_path / "texts", contents)
    with pytest.raises(DataError, match=rf"^{path}:b/text_files/n1.txt: this note comes twice; "):
        _read_codiesp_texts(path, Problems())
    archive(path, {"a/text_files/n1.txt": b"ni\xf1a", "a/text_files/n2.txt": b"tos"})
    with pytest.raises(DataError, match=rf"^{path}:a/text_files/n1.txt: not UTF-8; convert the t"):
        _read_codiesp_texts(path, Problems())
    problems = Problems("count")
    assert _read_codiesp_texts(path, problems) == {"n2": "tos"}
    assert problems.counts == {"text is not UTF-8": 1}
    with pytest.raises(DataError, match=r"none: no such file; check the path or fetch the corpus$"):
        _read_codiesp_texts(tmp_path / "none", Problems())


@given(st.data(), st.sampled_from(["w", "w:gz"]))
def test_an_archive_cut_short_gives_no_text_cut_short(tmp_path_factory, data, mode):
    texts = {f"note{number}": f"{number}" * 700 for number in range(4)}
    path = tmp_path_factory.mktemp("cut") / "texts"
    archive(path, {f"t/text_files/{id_}.txt": t.encode() for id_, t in texts.items()}, mode)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    problems = Problems("count")
    found = _read_codiesp_texts(path, problems)
    assert found.items() <= texts.items()
    assert problems.counts in ({}, {"damaged archive": 1})
    if problems.counts:
        with pytest.raises(DataError, match=r"texts: damaged, or no tar archive, after \d texts; "):
            _read_codiesp_texts(path, Problems())
    elif mode == "w:gz":  # cut in the checksum
        assert found == texts


def test_builder(tmp_path):
    datasets.disable_progress_bars()
    texts = {f"a/text_files/n{number}.txt": TEXT.encode() for number in range(3)}
    files = {"texts": archive(tmp_path / "texts.tar.gz", texts)}
    rows = [row("tos", "9 12"), row("dolor", "30 35", "r52"), row("fiebre", "14 20", "r50.9")]
    for number, split in enumerate(("train", "validation", "test")):
        files[split] = tmp_path / f"{split}.tsv"
        both = [*rows, row("fiebre", "14 20", "r50.8")] if split == "test" else rows
        files[split].write_text("\n".join(both).replace("n1", f"n{number}"))
    builder = CodiEsp(data_files=files, cache_dir=str(tmp_path / "cache"), num_candidates=2)
    builder.download_and_prepare()
    test = builder.as_dataset(split="test").to_list()
    assert [(r["mention"], r["candidate_ids"][r["label"]]) for r in test] == [
        ("tos", "R05"),
        ("dolor", "R52"),
    ]
    assert builder.counts.splits["test"].dropped == {"several codes": 2}
    with pytest.raises(DataError, match=r"label is 'X'; give 'DIAGNOSTICO' or 'PROCEDIMIENTO'"):
        CodiEsp(data_files=files, label="X")


@needs_data
def test_real_files():
    texts = _read_codiesp_texts(FILES["texts"], Problems())
    assert len(texts) == 1000
    codes = set()
    for split, diagnoses, procedures in (
        ("train", 7209, 1972),
        ("validation", 3431, 1046),
        ("test", 3665, 1112),
    ):
        notes = list(_read_codiesp(FILES[split], texts, "DIAGNOSTICO", Problems()))
        assert sum(len(note.spans) for note in notes) == diagnoses
        codes |= {code for note in notes for span in note.spans for code in span.concepts}
        notes = list(_read_codiesp(FILES[split], texts, "PROCEDIMIENTO", Problems()))
        assert sum(len(note.spans) for note in notes) == procedures
    assert len(codes) == 2557


@needs_data
def test_real_corpus(tmp_path):
    datasets.disable_progress_bars()
    ontology = DATA / "icd10cm" / "icd10cm2019.tsv.gz"
    sizes = {"train": 50, "validation": 50, "test": 300}
    builder = CodiEsp(
        data_files={**FILES, "ontology": ontology}, cache_dir=str(tmp_path), max_examples=sizes
    )
    builder.download_and_prepare()
    data = builder.as_dataset()
    assert {split: check_examples(rows) for split, rows in data.items()} == sizes
    counts = builder.counts.splits
    assert [counts[split].read for split in FILES if split != "texts"] == [7209, 3431, 3665]
    assert counts["test"].dropped["several codes"] == 36
    test = counts["test"]
    assert test.recall(10) * test.named / test.linked > 0.78
