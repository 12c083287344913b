import json
from collections import Counter
from pathlib import Path

import datasets
import pytest

from hf_kfc.errors import DataError
from hf_kfc.ranking.checks import check_examples
from hf_kfc.ranking.corpora.clinical_notes import ClinicalNotes
from hf_kfc.ranking.corpora.counts import SplitCounts
from hf_kfc.ranking.formats.documents import Document, Span

CODES = "code\tlong_desc\nJ11\tInfluenza\nR079\tChest pain, unspecified\nI10\tHypertension\n"
WORDS = {"flu": "j11", "chest pain": "R07.9", "high BP": "I10", "rash": "Q99.9", "well": None}


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


@pytest.fixture
def build(tmp_path):
    (tmp_path / "codes.tsv").write_text(CODES)

    def run(files: dict[str, Path], **config) -> ClinicalNotes:
        files = {"ontology": tmp_path / "codes.tsv", **files}
        config = {"num_candidates": 2, **config}
        builder = ClinicalNotes(data_files=files, cache_dir=str(tmp_path / "cache"), **config)
        builder.download_and_prepare()
        return builder

    return run


def marked(words: str) -> tuple[str, int, int]:
    text = f"Patient has {words} today."
    return text, text.index(words), text.index(words) + len(words)


def as_jsonl(folder: Path, name: str, notes: dict[str, str]) -> dict[str, Path]:
    rows = []
    for id_, words in notes.items():
        text, start, end = marked(words)
        spans = [{"start": start, "end": end, "code": WORDS[words]}]
        rows.append(json.dumps({"id": id_, "text": text, "spans": spans}))
    (folder / f"{name}.jsonl").write_text("\n".join(rows))
    return {name: folder / f"{name}.jsonl"}


def as_brat(folder: Path, name: str, notes: dict[str, str], source: str) -> dict[str, Path]:
    (folder / name).mkdir()
    for id_, words in notes.items():
        text, start, end = marked(words)
        code = WORDS[words] or ""
        label = code if source == "label" else "Finding"
        lines = [f"T1\t{label} {start} {end}\t{words}"]
        if source == "note":
            lines.append(f"#1\tAnnotatorNotes T1\t{code}")
        elif source == "normalization" and code:
            lines.append(f"N1\tReference T1 ICD10CM:{code}\t")
        (folder / name / f"{id_}.txt").write_text(text)
        (folder / name / f"{id_}.ann").write_text("\n".join(lines))
    return {name: folder / name}


def as_table(folder: Path, name: str, notes: dict[str, str]) -> dict[str, Path]:
    rows = ["note,start,end,code"]
    (folder / "texts").mkdir(exist_ok=True)
    for id_, words in notes.items():
        text, start, end = marked(words)
        rows.append(f"{id_},{start},{end},{WORDS[words] or ''}")
        (folder / "texts" / f"{id_}.txt").write_text(text)
    (folder / f"{name}.csv").write_text("\n".join(rows))
    return {name: folder / f"{name}.csv", "texts": folder / "texts"}


FORMS = {
    "jsonl": (as_jsonl, {}),
    "brat": (lambda *of: as_brat(*of, "normalization"), {"form": "brat"}),
    "brat notes": (lambda *of: as_brat(*of, "note"), {"form": "brat", "brat_code": "note"}),
    "table": (as_table, {"form": "table"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_examples(build, tmp_path, form):
    write, config = FORMS[form]
    files = write(tmp_path, "train", {"a": "flu", "b": "rash", "c": "well", "d": "high BP"})
    files |= write(tmp_path, "validation", {"e": "chest pain"})
    files |= write(tmp_path, "test", {"f": "flu"})
    builder = build(files, names_from=[], **config)
    data = builder.as_dataset()
    assert {split: check_examples(rows) for split, rows in data.items()} == {
        "train": 2,
        "validation": 1,
        "test": 1,
    }
    counts = builder.counts.splits["train"]
    assert counts.dropped == {"no code": 1, "gold concept not in the ontology": 1}
    assert (counts.read, counts.kept, counts.malformed) == (4, 2, {})
    (row,) = data["validation"].to_list()
    assert (row["document"], row["left"], row["mention"], row["right"]) == (
        "e",
        "Patient has",
        "chest pain",
        "today.",
    )
    assert row["candidate_ids"][row["label"]] == "R079"


def test_code_in_the_label(build, tmp_path):
    files = {}
    for split in ("train", "validation", "test"):
        files |= as_brat(tmp_path, split, {f"{split}1": "high BP"}, "label")
    builder = build(files, form="brat", brat_code="label")
    (row,) = builder.as_dataset(split="test").to_list()
    assert row["candidate_ids"][row["label"]] == "I10"
    # The words of the train notes are names of the code now.
    assert row["gold_rank"] == 0


@pytest.mark.parametrize("form", ["jsonl", "table"])
def test_one_set_is_split_by_note(build, tmp_path, form):
    write, config = FORMS[form]
    words = ("flu", "chest pain", "high BP")
    files = write(tmp_path, "notes", {f"note{i}": words[i % 3] for i in range(90)})
    builder = build(files, **config)
    data = builder.as_dataset()
    documents = [set(rows["document"]) for rows in data.values()]
    assert sum(map(len, documents)) == len(set.union(*documents)) == 90
    assert 50 < len(data["train"]) < 75
    assert min(len(data["validation"]), len(data["test"])) > 5


def test_malformed_records_of_one_set_are_counted_once(build, tmp_path):
    files = as_jsonl(tmp_path, "notes", {f"note{i}": "flu" for i in range(60)})
    with files["notes"].open("a") as file:
        file.write('\n{"id": "x"}\n')
    with pytest.raises(DataError, match=r"notes.jsonl:61: expected an object with the strings"):
        build(files)
    builder = build(files, on_error="count")
    malformed = [counts.malformed for counts in builder.counts.splits.values()]
    assert malformed == [{"note without id or text": 1}, {}, {}]
    assert sum(counts.kept for counts in builder.counts.splits.values()) == 60


def test_malformed_texts_of_tables_are_counted_once(build, tmp_path):
    files = {}
    for split in ("train", "validation", "test"):
        files |= as_table(tmp_path, split, {f"{split}1": "flu", f"{split}2": "high BP"})
    (tmp_path / "texts" / "validation2.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"validation2.txt: not UTF-8 at byte 3; convert the file"):
        build(files, form="table")
    builder = build(files, form="table", on_error="count")
    assert [counts.malformed for counts in builder.counts.splits.values()] == [
        {"text cannot be read": 1},
        {"note without text": 1},
        {},
    ]


def test_unknown_code_and_empty_ontology(build, tmp_path):
    files = {}
    for split in ("train", "validation", "test"):
        files |= as_jsonl(tmp_path, split, {f"{split}1": "rash", f"{split}2": "flu"})
    with pytest.raises(DataError, match=r"train.jsonl:1: concept 'Q999' of mention 'train1:12-16'"):
        build(files, names_from=[], on_unknown_concept="raise")
    (tmp_path / "codes.tsv").write_text(CODES.splitlines()[0])
    with pytest.raises(DataError, match=r"codes.tsv: no concept in format 'icd10cm'; check"):
        build(files, names_from=[])


@pytest.mark.parametrize(
    ("keys", "config", "message"),
    [
        (["train", "test"], {}, "was given the files ontology, train, test; give train, valid"),
        (["notes", "test"], {}, "was given the files ontology, notes, test; give train, valid"),
        ([], {}, "was given the files ontology; give train, validation, test, or notes"),
        (["notes"], {"form": "table"}, "form 'table' and 0 files 'texts'; give texts to the"),
        (["notes", "texts"], {}, "form 'jsonl' and 1 files 'texts'; give texts to the form 'ta"),
        (["notes"], {"form": "xml"}, "form is 'xml'; give 'jsonl' or 'brat' or 'table'"),
        (["notes"], {"brat_code": "x"}, "brat_code is 'x'; give 'normalization' or 'note' or"),
    ],
)
def test_files_and_values_that_do_not_go_together(build, tmp_path, keys, config, message):
    files = as_jsonl(tmp_path, "notes", {"a": "flu"})
    with pytest.raises(DataError, match=message):
        build(dict.fromkeys(keys, files["notes"]), **config)


def test_mentions_of_a_note(build, tmp_path):
    files = as_jsonl(tmp_path, "notes", {f"note{i}": "flu" for i in range(60)})
    text = "0 aa 1 bb 2 cc 3 dd 4"
    spans = [
        Span(((7, 9), (2, 4)), "bb aa", ("a00.1",), "f:1", remarks=("odd",)),
        Span(((12, 14),), "c\n c", ("A00", "a00"), "f:2"),
        Span(((17, 19),), "dd", ("B00",), "f:3"),
        Span(((17, 19),), "dd", ("B01",), "f:4", remarks=("odd",)),
        Span(((0, 1),), "0", (), "f:5", remarks=("odd",)),
        Span(((20, 21),), "4", ("B00", "B01"), "f:6"),
    ]
    counts = SplitCounts()
    found = list(build(files)._linked(Document("n", text, spans), counts))
    assert [(m.text, m.left, m.right, m.concept, m.key, m.where) for m in found] == [
        ("bb aa", "0 ", " 2 cc 3 dd 4", "A001", "7-9;2-4", "f:1"),
        ("c c", "0 aa 1 bb 2 ", " 3 dd 4", "A00", "12-14", "f:2"),
    ]
    assert counts.dropped == Counter({"several codes": 3, "no code": 1})
    assert counts.remarks == {"odd": 1, "discontinuous mention": 1}
