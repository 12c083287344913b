import gzip
import re
from pathlib import Path

import datasets
import pytest
from corpora import DATA, needs_data

from hf_kfc.errors import DataError
from hf_kfc.ranking.bc5cdr import Annotation, Bc5cdr, read_pubtator
from hf_kfc.ranking.checks import check_examples

NAMES = "D1\tNaloxone\nD2\tClonidine\nD3\tHypertension\nD4\tDelirium\n"


def document(id_: str, title: str, abstract: str, *marks: tuple[str, str]) -> str:
    """A PubTator block; each mark is a span of the text and its concept."""
    text = f"{title} {abstract}"
    rows = [f"{id_}|t|{title}", f"{id_}|a|{abstract}"]
    for span, concept in marks:
        start = text.index(span)
        rows.append(f"{id_}\t{start}\t{start + len(span)}\t{span}\tDisease\t{concept}")
    return "\n".join([*rows, f"{id_}\tCID\tD1\tD2", "", ""])


TRAIN = document(
    "1",
    "Naloxone and high BP.",
    "Ocular and auditory toxicity or delusions.",
    ("Naloxone", "D1"),
    ("high BP", "D3"),
    ("Ocular and auditory toxicity", "D8|D9"),
    ("delusions", "-1"),
    ("and", "C77"),
)
DEV = document("2", "Catapres given.", "No more.", ("Catapres", "D2"))
TEST = document("3", "Case of confusion.", "High BP.", ("confusion", "D4"), ("High BP", "D3"))


@pytest.fixture
def corpus(tmp_path):
    datasets.disable_progress_bars()
    contents = {"train": TRAIN, "validation": DEV, "test": TEST, "names": NAMES}

    def make(**changes: str) -> Bc5cdr:
        for key, content in (contents | changes).items():
            (tmp_path / f"{key}.txt").write_text(content)
        files = {key: tmp_path / f"{key}.txt" for key in contents}
        return Bc5cdr(data_files=files, cache_dir=str(tmp_path / "cache"), num_candidates=2)

    return make


def test_read_pubtator_joins_title_and_abstract_and_passes_over_relations(tmp_path):
    plain, zipped = tmp_path / "plain", tmp_path / "zipped"
    plain.write_text(TRAIN + DEV.replace("\n", "\r\n"))
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    documents = list(read_pubtator(plain))
    assert documents == list(read_pubtator(zipped))
    assert [(d.id, len(d.annotations)) for d in documents] == [("1", 5), ("2", 1)]
    assert documents[0].text == "Naloxone and high BP. Ocular and auditory toxicity or delusions."
    assert documents[0].annotations[0] == Annotation(0, 8, "Naloxone", "D1")


def test_mentions_without_one_concept_are_dropped_and_counted(corpus):
    builder = corpus()
    builder.download_and_prepare()
    counts = builder.counts.splits["train"]
    assert counts.dropped == {
        "composite mention": 1,
        "no concept": 1,
        "gold concept not in the ontology": 1,
    }
    assert (counts.read, counts.kept) == (5, 2)
    rows = builder.as_dataset()["train"].to_list()
    assert [(row["id"], row["left"], row["mention"], row["right"]) for row in rows] == [
        ("1:0-8", "", "Naloxone", "and high BP. Ocular and auditory toxicity or delusions."),
        (
            "1:13-20",
            "Naloxone and",
            "high BP",
            ". Ocular and auditory toxicity or delusions.",
        ),
    ]


def test_only_train_mentions_become_aliases(corpus):
    builder = corpus()
    builder.download_and_prepare()
    names = {concept.id: concept.names for concept in builder._ontology()}
    assert names == {
        "D1": ("Naloxone",),
        "D2": ("Clonidine",),
        "D3": ("Hypertension", "high BP"),
        "D4": ("Delirium",),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"test": TEST.replace("confusion\tD", "konfusion\tD")},
            r"test.txt:3: mention 'konfusion' is not the text at 8:17, which is 'confusion'; "
            r"correct the offsets$",
        ),
        (
            {"train": "1|t|Title\n1\t0\t5\n"},
            r"train.txt:2: expected 'id, start, end, mention, type, concept' between tabs; ",
        ),
        (
            {"train": "1|t|Title\n1\t0\tx\tTitle\tDisease\tD1\n"},
            r"train.txt:2: expected 'id, start, end, mention, type, concept' between tabs; ",
        ),
        (
            {"train": "1|t|Title\n2|a|Abstract\n"},
            r"train.txt:2: line of document '2' outside of it; start each document with its title",
        ),
        ({"names": "D1 Naloxone\n"}, r"names.txt:1: expected 'id<TAB>name', got 'D1 Naloxone'; "),
        ({"names": "D1\t\n"}, r"names.txt:1: expected 'id<TAB>name', got 'D1\\t'; correct or rem"),
        ({"names": ""}, r"names.txt: the vocabulary is empty; fetch the file again$"),
        ({"test": TRAIN}, r"^document '1' is in the splits train and test; keep"),
        ({"train": TRAIN + TRAIN}, r"/train: mention '1:0-8' comes twice; remove the repeated doc"),
    ],
)
def test_malformed_files(corpus, changes, message):
    builder = corpus(**changes)
    with pytest.raises(DataError, match=message):
        builder.download_and_prepare()
    assert not Path(builder.cache_dir).exists()


def test_damaged_files(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(gzip.compress(TRAIN.encode() * 50)[:-20])
    with pytest.raises(DataError, match=rf"^{re.escape(str(file))}: damaged gzip data after line "):
        list(read_pubtator(file))
    file.write_bytes(b"1|t|caf\xe9\n")
    with pytest.raises(DataError, match=r"file: not UTF-8 after line 0; convert the file$"):
        list(read_pubtator(file))


@needs_data
@pytest.mark.parametrize(("split", "mentions"), [("train", 9385), ("dev", 9591), ("test", 9809)])
def test_real_files_have_all_their_mentions(split, mentions):
    documents = list(read_pubtator(DATA / "bc5cdr" / f"{split}_corpus.pubtator.txt.gz"))
    assert len(documents) == 500
    assert sum(len(document.annotations) for document in documents) == mentions


@needs_data
def test_real_corpus(tmp_path):
    folder = DATA / "bc5cdr"
    files = {
        "train": folder / "train_corpus.pubtator.txt.gz",
        "validation": folder / "dev_corpus.pubtator.txt.gz",
        "test": folder / "test_corpus.pubtator.txt.gz",
        "names": folder / "mesh_names.tsv.gz",
    }
    sizes = {"train": 200, "validation": 200, "test": 300}
    builder = Bc5cdr(data_files=files, cache_dir=str(tmp_path), max_examples=sizes)
    builder.download_and_prepare()
    data = builder.as_dataset()
    assert {split: check_examples(examples) for split, examples in data.items()} == sizes
    assert builder.counts.concepts == 29054
    test = builder.counts.splits["test"]
    assert test.dropped == {
        "no concept": 91,
        "composite mention": 75,
        "gold concept not in the ontology": 774,
    }
    assert test.read == 9809 == 300 + test.not_drawn + 940
    assert test.recall > 0.75
