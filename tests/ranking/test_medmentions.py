import json
from itertools import islice
from pathlib import Path

import datasets
import pytest
from corpora import DATA, needs_data

from hf_kfc.errors import DataError
from hf_kfc.ranking.checks import check_examples
from hf_kfc.ranking.medmentions import MedMentions, read_mentions

NAMES = "C1\tFever\nC1\tPyrexia\nC2\tCough\nC5\tRash\n"


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

    def make(train: list[str] = TRAIN, test: list[str] = TEST) -> MedMentions:
        contents = {"train": "\n".join(train), "test": "\n".join(test), "names": NAMES}
        for key, content in contents.items():
            (tmp_path / key).write_text(content)
        files = {key: tmp_path / key for key in contents}
        return MedMentions(data_files=files, cache_dir=str(tmp_path / "cache"), num_candidates=3)

    return make


def test_validation_is_carved_out_by_document(corpus):
    again = [line(str(n), "again", "C2") for n in range(60)]
    builder = corpus([*TRAIN, *again])
    builder.download_and_prepare()
    data = builder.as_dataset()
    train, validation = set(data["train"]["document"]), set(data["validation"]["document"])
    assert len(train) + len(validation) == len(train | validation) == 60
    assert 0 < len(validation) < 15
    assert set(data["test"]["document"]) == {"t1", "t2"}


def test_names_are_open_ones_or_forms_of_train_documents(corpus):
    builder = corpus()
    builder.download_and_prepare()
    data = builder.as_dataset()
    concepts = {concept.id: concept for concept in builder._ontology()}
    assert concepts["C3"].names == ("sneeze", "Sneezing")
    assert concepts["C2"].names == ("Cough",)
    assert concepts["C1"].names[:2] == ("Fever", "Pyrexia")
    assert set(concepts["C1"].names[2:]) == {
        mention for mention in data["train"]["mention"] if mention.startswith("hot")
    }
    assert not set(concepts["C1"].names) & set(data["validation"]["mention"])


def test_mentions_of_a_concept_with_no_name_are_dropped_and_counted(corpus):
    builder = corpus()
    builder.download_and_prepare()
    counts = builder.counts.splits["test"]
    assert counts.dropped == {"gold concept not in the ontology": 1}
    assert (counts.read, counts.kept, builder.counts.concepts) == (3, 2, 4)
    assert builder.as_dataset()["test"]["id"][:] == ["t1:line1", "t2:line3"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", r"train:65: not JSON \(Expecting property name .*\); correct or remove the line$"),
        ("[]", r"train:65: expected an object with the strings doc, mention, cui, left, right; "),
        (line("1", "x", "C1", left=None), r"train:65: expected an object with the strings doc, "),
        (line("1", " ", "C1"), r"/train: empty mention '1:line65'; remove the annotation"),
        (line("t1", "x", "C1"), r"^document 't1' is in the splits train and test; keep each doc"),
    ],
)
def test_malformed_files(corpus, bad, message):
    builder = corpus([*TRAIN, bad])
    with pytest.raises(DataError, match=message):
        builder.download_and_prepare()
    assert not Path(builder.cache_dir).exists()


@needs_data
def test_real_train_file_has_all_its_mentions():
    mentions = list(read_mentions(DATA / "medmentions_st21pv" / "train.jsonl.gz"))
    assert len(mentions) == 122001
    assert len({mention.concept for mention in mentions}) == 18506
    assert mentions[0].text == "dynactin 4"


@needs_data
def test_a_part_of_the_real_corpus(tmp_path, corpus):
    folder = DATA / "medmentions_st21pv"
    files = {"names": DATA / "ontologies" / "cui_names_strict.tsv.gz"}
    for split in ("train", "test"):
        source = islice(read_mentions(folder / f"{split}.jsonl.gz"), 3000)
        rows = [line(m.document, m.text, m.concept, left=m.left, right=m.right) for m in source]
        files[split] = tmp_path / split
        files[split].write_text("\n".join(rows))
    sizes = {"train": 100, "validation": 50, "test": 100}
    builder = MedMentions(data_files=files, cache_dir=str(tmp_path), max_examples=sizes)
    builder.download_and_prepare()
    data = builder.as_dataset()
    assert {split: check_examples(examples) for split, examples in data.items()} == sizes
    assert builder.counts.splits["test"].read == 3000
    assert builder.counts.splits["train"].recall > 0.95
