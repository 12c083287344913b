import datasets
import pytest
from pubtator_text import block
from real_data import DATA, needs_data

from hf_kfc.errors import DataError
from hf_kfc.ranking.checks import check_examples
from hf_kfc.ranking.corpora.bc5cdr import Bc5cdr

FOLDER = DATA / "bc5cdr"
FILES = {
    "train": FOLDER / "train_corpus.pubtator.txt.gz",
    "validation": FOLDER / "dev_corpus.pubtator.txt.gz",
    "test": FOLDER / "test_corpus.pubtator.txt.gz",
    "ontology": FOLDER / "mesh_names.tsv.gz",
}


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


def test_only_train_mentions_lend_their_words_to_concepts(tmp_path):
    contents = {
        "train": block("1", "High BP.", "Naloxone.", ("High BP", "D3"), ("Naloxone", "D1")),
        "validation": block("2", "Elevated pressure.", "", ("Elevated pressure", "D3")),
        "test": block("3", "High BP.", "", ("High BP", "D3")),
        "ontology": "D1\tNaloxone\nD3\tHypertension\n",
    }
    files = {key: tmp_path / key for key in contents}
    for key, file in files.items():
        file.write_text(contents[key])
    builder = Bc5cdr(data_files=files, cache_dir=str(tmp_path / "cache"), num_candidates=2)
    builder.download_and_prepare()
    assert (builder.counts.concepts, builder.counts.names) == (2, 3)
    ranks = {split: data["gold_rank"][0] for split, data in builder.as_dataset().items()}
    assert ranks == {"train": 0, "validation": -1, "test": 0}


def test_the_files_are_those_of_the_corpus(tmp_path):
    with pytest.raises(DataError, match=r"^Bc5cdr reads no file 'corpus'; data_files may name tr"):
        Bc5cdr(data_files={"corpus": tmp_path})


@needs_data
def test_real_corpus(tmp_path):
    sizes = {"train": 200, "validation": 200, "test": 300}
    builder = Bc5cdr(data_files=FILES, cache_dir=str(tmp_path), max_examples=sizes)
    builder.download_and_prepare()
    data = builder.as_dataset()
    assert {split: check_examples(examples) for split, examples in data.items()} == sizes
    counts = builder.counts
    assert counts.concepts == 29054 + 157  # of MeSH; named by train mentions alone
    assert [split.read for split in counts.splits.values()] == [9385, 9591, 9809]
    test = counts.splits["test"]
    assert test.dropped == {
        "no concept": 91,
        "composite mention": 75,
        "gold concept not in the ontology": 625,
    }
    assert test.linked == 9809 - 91 - 75
    assert test.remarks["CID relation passed over"] == 1066
    assert test.recall() > 0.8
