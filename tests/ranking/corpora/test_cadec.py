from pathlib import Path

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_kfc.errors import DataError
from hf_kfc.ranking.corpora.cadec import Cadec, _read_label
from hf_kfc.ranking.problems import Problems

NAMES = {"271782001": "Drowsy", "22253000": "Pain", "62507009": "Pins and needles"}
CODES = st.integers(10**5, 10**17).map(str)
NAME = st.from_regex(r"[A-Z][a-z]{1,8}( [a-z]{3,8})?", fullmatch=True)


@pytest.mark.parametrize(
    ("label", "concepts"),
    [
        ("CONCEPT_LESS", ()),
        ("10013649", (("10013649", ""),)),
        ("271782001 | Drowsy |", (("271782001", "Drowsy"),)),
        ("271782001|Drowsy", (("271782001", "Drowsy"),)),
        ("22970110000361 | iron | (substance)", (("22970110000361", "iron (substance)"),)),
        ("10013649/10019211", (("10013649", ""), ("10019211", ""))),
        ("10013649 + 10019211", (("10013649", ""), ("10019211", ""))),
        ("22253000 | Pain | + 62507009 Tingle |", (("22253000", "Pain"), ("62507009", "Tingle"))),
        ("22253000 | Pain| or 62507009|Tingle|", (("22253000", "Pain"), ("62507009", "Tingle"))),
        ("22253000 | Red or sore |", (("22253000", "Red or sore"),)),
        ("ADR", None),
        ("12 | Drowsy |", None),
        ("22253000 | Pain | + Tingle |", None),
        ("10013649/CONCEPT_LESS", None),
    ],
)
def test_labels(label, concepts):
    assert _read_label(label) == concepts


@given(
    st.lists(st.tuples(CODES, NAME), min_size=1, max_size=4),
    st.sampled_from([" + ", " or ", "/", "+"]),
)
@settings(deadline=None)  # a machine that is busy is no fault
def test_labels_that_are_written_are_read(concepts, between):
    assert _read_label(between.join(f"{c} | {name} |" for c, name in concepts)) == tuple(concepts)
    codes = tuple((code, "") for code, _ in concepts)
    assert _read_label(between.join(code for code, _ in concepts)) == codes


@given(st.text())
def test_any_other_label_has_no_code(label):
    assert all(code.isdecimal() and len(code) >= 6 for code, _ in _read_label(label) or ())


def post(number: int) -> tuple[str, list[str]]:
    text = f"Day {number}:\nso sleepy, legs hurt\nand tingle."
    spans = [
        ("271782001 | Drowsy |", ["so sleepy"]),
        ("22253000 | Pain |", ["legs", "hurt"]),
        ("22253000 | Pain | + 62507009 | Pins and needles |", ["hurt\nand tingle"]),
        ("CONCEPT_LESS", ["Day"]),
    ]
    lines = []
    for i, (label, pieces) in enumerate(spans, start=1):
        places = ";".join(f"{text.index(p)} {text.index(p) + len(p)}" for p in pieces)
        words = " ".join(" ".join(pieces).split())
        lines.append(f"TT{i}\t{label} {places}\t{words}")
    return text, lines


@pytest.fixture
def corpus(tmp_path):
    datasets.disable_progress_bars()
    (tmp_path / "text").mkdir()
    (tmp_path / "sct").mkdir()

    def make(extra: str = "", names: str = "", **config: object) -> Cadec:
        for number in range(40):
            text, lines = post(number)
            (tmp_path / "text" / f"DRUG.{number}.txt").write_text(text)
            lines += [extra] if number == 7 and extra else []
            (tmp_path / "sct" / f"DRUG.{number}.ann").write_text("\n".join(lines) + "\n")
        files = {"text": tmp_path / "text", "annotations": tmp_path / "sct"}
        if names:
            files["ontology"] = tmp_path / "names.tsv"
            files["ontology"].write_text(names)
        return Cadec(
            data_files=files, cache_dir=str(tmp_path / "cache"), num_candidates=3, **config
        )

    return make


def total(builder: Cadec, kind: str) -> dict[str, int]:
    sums: dict[str, int] = {}
    for counts in builder.counts.splits.values():
        for reason, number in getattr(counts, kind).items():
            sums[reason] = sums.get(reason, 0) + number
    return sums


def test_posts_become_examples_under_the_names_of_the_labels(corpus):
    builder = corpus(names_from=[])
    builder.download_and_prepare()
    data = builder.as_dataset()
    assert total(builder, "dropped") == {"several concepts": 40, "no concept": 40}
    assert total(builder, "remarks") == {"discontinuous mention": 40}
    documents = [set(examples["document"]) for examples in data.values()]
    assert all(documents)
    assert len(set.union(*documents)) == sum(map(len, documents)) == 40
    row, pieces = data["train"][0], data["train"][1]
    names = dict(zip(row["candidate_ids"], row["candidate_names"], strict=True))
    assert names == NAMES
    assert (row["mention"], row["candidate_ids"][row["label"]]) == ("so sleepy", "271782001")
    assert row["left"].startswith("Day ")
    assert row["right"] == ", legs hurt and tingle."
    assert (pieces["mention"], pieces["right"]) == ("legs hurt", "and tingle.")


def test_an_ontology_widens_the_corpus_names(corpus):
    builder = corpus(names="271782001\tDrowsiness\n1\tNausea\n")
    builder.download_and_prepare()
    rows = {row["mention"]: row for row in builder.as_dataset()["train"]}
    shown = rows["so sleepy"]["candidate_names"]
    assert "Drowsiness" in shown
    assert "Drowsy" not in shown
    assert builder.counts.concepts == 4


@pytest.mark.parametrize(
    ("line", "reason", "message"),
    [
        ("TT9\tADR 0 3\tDay", "label is no code", r"DRUG.7.ann:5: 'ADR' is no code; correct or"),
        ("TT9    22253000 0 3    Day", "line of unknown kind", r"DRUG.7.ann:5: "),
        ("TT9\t22253000 0 300\tDay", "offset outside the text", r"DRUG.7.ann:5: offsets 0 to 300"),
        (
            "TT9\t22253000 0 3\tNight",
            "mention differs from the text",
            r"DRUG.7.ann:5: mention 'N",
        ),
        ("TT9\t22253000 0", "truncated or malformed line", r"DRUG.7.ann:5: "),
    ],
)
def test_malformed_lines_raise_or_are_counted(corpus, line, reason, message):
    with pytest.raises(DataError, match=message):
        corpus(line).download_and_prepare()
    builder = corpus(line, on_error="count")
    builder.download_and_prepare()
    assert total(builder, "malformed") == {reason: 1}
    assert sum(counts.kept for counts in builder.counts.splits.values()) == 80


def test_where_no_label_is_a_code_that_is_said_and_not_what_comes_of_it(corpus, tmp_path):
    """The folder of spans in the place of the one of codes: no concept has a name then."""
    corpus()
    for path in (tmp_path / "sct").iterdir():
        path.write_text("T1\tADR 0 3\tDay\n")
    files = {"text": tmp_path / "text", "annotations": tmp_path / "sct"}
    builder = Cadec(data_files=files, cache_dir=str(tmp_path / "cache"), on_error="count")
    with pytest.raises(DataError, match=r"cadec/train: no usable mention .*label is no code: \d"):
        builder.download_and_prepare()


def test_codes_that_nothing_names_are_told(corpus, tmp_path):
    """Labels of MedDRA have no names."""
    corpus()
    for path in (tmp_path / "sct").iterdir():
        path.write_text("T1\t10013649 0 3\tDay\n")
    files = {"text": tmp_path / "text", "annotations": tmp_path / "sct"}
    builder = Cadec(data_files=files, cache_dir=str(tmp_path / "cache"), names_from=[])
    with pytest.raises(DataError, match="cadec: no concept has a name; give an ontology"):
        builder.download_and_prepare()


def test_posts_without_annotations_or_in_another_encoding(corpus, tmp_path):
    corpus()
    (tmp_path / "text" / "DRUG.3.txt").write_bytes(b"caf\xe9")
    (tmp_path / "sct" / "DRUG.4.ann").unlink()

    def damaged(**config: str) -> Cadec:
        files = {"text": tmp_path / "text", "annotations": tmp_path / "sct"}
        return Cadec(data_files=files, cache_dir=str(tmp_path / "cache"), **config)

    with pytest.raises(DataError, match=r"DRUG.3.txt: not UTF-8 at byte 3; convert the file$"):
        damaged().download_and_prepare()
    builder = damaged(on_error="count")
    builder.download_and_prepare()
    assert total(builder, "malformed") == {
        "text cannot be read": 1,
        "file without its counterpart": 1,
    }
    assert sum(counts.kept for counts in builder.counts.splits.values()) == 76


@given(st.data())
@settings(deadline=None)
def test_cut_annotations_give_no_wrong_mention(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("cadec")
    text, lines = post(1)
    content = "\n".join(lines) + "\n"
    (folder / "D.1.txt").write_text(text)
    (folder / "D.1.ann").write_text(content)
    (whole,) = annotations(folder)
    (folder / "D.1.ann").write_text(content[: data.draw(st.integers(0, len(content)))])
    for cut in annotations(folder):
        assert cut == whole[: len(cut)]


def annotations(folder: Path) -> list:
    files = {"text": folder / "D.1.txt", "annotations": folder / "D.1.ann"}
    builder = Cadec(data_files=files, cache_dir=str(folder / "cache"))
    builder.files = {key: [str(path)] for key, path in files.items()}
    return [d.spans for d in builder._all_documents(Problems("count"))]
