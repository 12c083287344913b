import json
from pathlib import Path

import datasets
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pubtator_text import block
from real_data import DATA, needs_data

from hf_kfc.errors import DataError
from hf_kfc.ranking.checks import check_examples
from hf_kfc.ranking.corpora.medmentions import MedMentions, MedMentionsLines, _read_mentions
from hf_kfc.ranking.corpora.pubtator import _read_ids
from hf_kfc.ranking.formats.documents import pieces_text
from hf_kfc.ranking.problems import Problems

FOLDER = DATA / "medmentions_st21pv"
ONTOLOGY = "C1\tFever\nC1\tPyrexia\nC2\tCough\nC5\tRash\n"


def line(doc: str, mention: str, cui: str, **changes: object) -> str:
    record = {"doc": doc, "mention": mention, "cui": cui, "left": "a b", "right": "c d"}
    return json.dumps(record | changes)


TRAIN = [line(str(n), f"hot{n}", "C1") for n in range(60)]
TRAIN += [line("7", "Sneezing", "C3"), line("8", "sneeze", "C3"), line("8", "sneeze", "C3")]
TRAIN += [line("8", "COUGH", "C2")]
TEST = [line("t1", "tussis", "C2"), line("t1", "unheard", "C4"), line("t2", "rash", "C5")]


@pytest.fixture
def corpus(tmp_path):
    datasets.disable_progress_bars()

    def make(train: list[str] = TRAIN, test: list[str] = TEST, **config) -> MedMentionsLines:
        contents = {"train": "\n".join(train), "test": "\n".join(test), "ontology": ONTOLOGY}
        for key, content in contents.items():
            (tmp_path / key).write_text(content)
        files = {key: tmp_path / key for key in contents}
        cache = str(tmp_path / "cache")
        return MedMentionsLines(data_files=files, cache_dir=cache, num_candidates=3, **config)

    return make


def test_the_release_is_split_by_its_lists_and_filtered_by_type(tmp_path):
    datasets.disable_progress_bars()
    contents = {
        "corpus": block("1", "Fever.", "", ("Fever", "UMLS:C1", "T184,T033"))
        + block("2", "Itchy rash.", "", ("rash", "C5", "T047"), ("Itchy", "UMLS:C6", "T184"))
        + block("3", "Fever, rash.", "", ("Fever", "UMLS:C1", "T184"), ("rash", "C5", "T047")),
        "train_ids": "2\n",
        "validation_ids": "1\n",
        "test_ids": "3\n",
        "ontology": ONTOLOGY,
    }
    files = {key: tmp_path / key for key in contents}
    for key, file in files.items():
        file.write_text(contents[key])

    def golds(**config) -> dict[str, list[str]]:
        builder = MedMentions(data_files=files, cache_dir=str(tmp_path / "cache"), **config)
        builder.download_and_prepare()
        return {
            split: [row["candidate_ids"][row["label"]] for row in rows]
            for split, rows in builder.as_dataset().items()
        }

    assert golds(num_candidates=3) == {
        "train": ["C5", "C6"],
        "validation": ["C1"],
        "test": ["C1", "C5"],
    }
    assert golds(num_candidates=3, types=["T184"]) == {
        "train": ["C6"],
        "validation": ["C1"],
        "test": ["C1"],
    }


def test_validation_is_carved_out_by_document(corpus):
    again = [line(str(n), "again", "C2") for n in range(60)]
    builder = corpus([*TRAIN, *again])
    builder.download_and_prepare()
    data = builder.as_dataset()
    train, validation = set(data["train"]["document"]), set(data["validation"]["document"])
    assert len(train) + len(validation) == len(train | validation) == 60
    assert 0 < len(validation) < 15
    assert set(data["test"]["document"]) == {"t1", "t2"}


def test_mentions_of_a_concept_with_no_name_are_dropped_and_counted(corpus):
    builder = corpus()
    builder.download_and_prepare()
    counts = builder.counts.splits["test"]
    assert counts.dropped == {"gold concept not in the ontology": 1}
    # C3 has only the names that train documents give it
    assert (counts.read, counts.kept, builder.counts.concepts) == (3, 2, 4)
    assert builder.as_dataset()["test"]["id"][:] == ["t1:line1", "t2:line3"]


@pytest.mark.parametrize(
    ("bad", "reason", "message"),
    [
        ("{", "line is not JSON", r"train:65: not JSON \(Expecting property .*\); correct or rem"),
        ("[" * 100_000, "line is not JSON", r"train:65: not JSON \(.*\); correct or remove the l"),
        ("1" * 5000, "line is not JSON", r"train:65: not JSON \(.*\); correct or remove the line"),
        ("[]", "line is not a mention", r"train:65: expected an object with the strings doc, men"),
        (line("1", "x", "C1", left=None), "line is not a mention", r"train:65: expected an object"),
        (line("1", "x", ""), "line is not a mention", r"train:65: .*the first three not empty; "),
        (line("1", "\ud83d", "C1"), "line is not JSON", r"train:65: not JSON \(.*surrogate"),
        (line("1", " ", "C1"), "empty mention", r"train:65: empty mention '1:line65'; remove the"),
    ],
)
def test_malformed_lines_raise_or_are_counted_once(corpus, bad, reason, message):
    train = [*TRAIN, bad, line("9", "cough", "C2")]
    builder = corpus(train)
    with pytest.raises(DataError, match=message):
        builder.download_and_prepare()
    assert not Path(builder.cache_dir).exists()
    builder = corpus(train, on_error="count")
    builder.download_and_prepare()
    counts = builder.counts.splits
    assert [split.malformed for split in counts.values()] == [{reason: 1}, {}, {}]
    assert counts["train"].read + counts["validation"].read == 65


def test_a_document_in_both_files_is_refused(corpus):
    with pytest.raises(DataError, match=r"^document 't1' is in the splits train and test; keep ea"):
        corpus([*TRAIN, line("t1", "x", "C1")]).download_and_prepare()


records = st.lists(
    st.tuples(
        *[st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9)] * 3,
        *[st.text(st.characters(exclude_categories=["Cs"]), max_size=9)] * 2,
    )
)


@given(records, st.booleans())
def test_what_is_written_is_read_back(tmp_path_factory, rows, escaped):
    file = tmp_path_factory.getbasetemp() / "mentions.jsonl"
    names = ("doc", "mention", "cui", "left", "right")
    objects = [dict(zip(names, row, strict=True)) for row in rows]
    lines = [json.dumps(row, ensure_ascii=escaped) + "\n" for row in objects]
    file.write_bytes("".join(lines).encode())
    read = list(_read_mentions(file, Problems()))
    for document, (id_, mention, concept, left, right) in zip(read, rows, strict=True):
        (span,) = document.spans
        assert (document.id, span.text, span.concepts) == (id_, mention, (concept,))
        assert pieces_text(document.text, span.pieces) == mention
        assert document.text == left + mention + right
    assert [document.spans[0].where for document in read] == [
        f"{file}:{n + 1}" for n in range(len(rows))
    ]


@given(st.integers(0, len(TRAIN[0]) - 1))
def test_a_line_cut_short_is_never_a_mention(tmp_path_factory, cut):
    file = tmp_path_factory.getbasetemp() / "cut.jsonl"
    file.write_text(f"{TRAIN[1]}\n{TRAIN[0][:cut]}\n{TRAIN[2]}\n")
    problems = Problems("count")
    assert [d.spans[0].text for d in _read_mentions(file, problems)] == ["hot1", "hot2"]
    assert problems.counts == {"line is not JSON": 1}


@needs_data
def test_real_lists_are_read_without_a_problem():
    lists = [
        _read_ids(FOLDER / f"corpus_pubtator_pmids_{split}.txt", Problems())
        for split in ("trng", "dev", "test")
    ]
    assert [len(ids) for ids in lists] == [2635, 878, 879]
    assert len(set().union(*lists)) == 4392


@needs_data
def test_real_corpus(tmp_path):
    datasets.disable_progress_bars()
    files = {
        "train": FOLDER / "train.jsonl.gz",
        "test": FOLDER / "test.jsonl.gz",
        "ontology": DATA / "ontologies" / "cui_names_strict.tsv.gz",
    }
    sizes = {"train": 50, "validation": 50, "test": 200}
    builder = MedMentionsLines(data_files=files, cache_dir=str(tmp_path), max_examples=sizes)
    builder.download_and_prepare()
    data = builder.as_dataset()
    assert {split: check_examples(examples) for split, examples in data.items()} == sizes
    counts = builder.counts.splits
    assert counts["train"].read + counts["validation"].read == 122001
    assert 0.08 < counts["validation"].read / 122001 < 0.12
    assert counts["test"].read == counts["test"].linked == 40074
    assert counts["test"].recall() > 0.8
