"""What the card of a data set tells, and on what terms a set is published."""

import hashlib
import re
from types import SimpleNamespace

import datasets
import pytest

from hf_kfc.errors import DataError
from hf_kfc.ranking.corpora.counts import Counts, SplitCounts
from hf_kfc.ranking.corpora.pubtator import Pubtator
from hf_kfc.ranking.dataset_card import Terms, counts_table, dataset_card
from hf_kfc.ranking.licenses import ONTOLOGY_LICENSES, License
from hf_kfc.ranking.schema import FEATURES

OPEN = License("CC BY 4.0", "https://example.org/by", True, "Doe (2020)", id="cc-by-4.0")
CLOSED = License("Members only", "https://example.org/no", False)


def corpus(license_, files=("train",), ontology_format="names"):
    config = SimpleNamespace(
        data_files={key: ["a.txt"] for key in files}, ontology_format=ontology_format
    )
    return SimpleNamespace(LICENSE=license_, config=config)


@pytest.mark.parametrize(
    ("builder", "ontology_license"),
    [
        (corpus(OPEN), None),
        (corpus(OPEN, (), "umls"), None),  # reads no ontology: the format is idle
        (corpus(OPEN, ("ontology",)), OPEN),
        (corpus(OPEN, ("ontology",), "mesh"), None),
        (corpus(OPEN, ("ontology",), "icd10cm"), None),
    ],
)
def test_open_text_with_open_names_may_be_published(builder, ontology_license):
    Terms.of(builder, ontology_license).check("mine")


@pytest.mark.parametrize(
    ("builder", "ontology_license", "message"),
    [
        (corpus(None), None, "the licence of its text is not known"),
        (corpus(CLOSED), None, r"the licence of its text \(Members only\) forbids it"),
        (corpus(OPEN, ("ontology",)), None, "the licence of its concept names is not known"),
        (corpus(OPEN, ("ontology",)), CLOSED, r"concept names \(Members only\) forbids it"),
        (corpus(OPEN, ("ontology",), "umls"), None, r"concept names \(UMLS .*\) forbids it"),
        (corpus(OPEN, ("ontology",), "medic"), None, r"concept names \(CTD .*\) forbids it"),
    ],
)
def test_anything_else_needs_a_reason(builder, ontology_license, message):
    for no_reason in (None, "", "  "):
        with pytest.raises(DataError, match=f"^mine: not pushed, .*{message}; if you have"):
            Terms.of(builder, ontology_license, no_reason).check("mine")
    Terms.of(builder, ontology_license, "it is mine").check("mine")


def test_what_is_said_of_the_ontology_goes_before_its_format():
    assert Terms.of(corpus(OPEN, ("ontology",), "umls"), OPEN).names is OPEN
    assert Terms.of(corpus(OPEN, ("ontology",), "mesh")).names is ONTOLOGY_LICENSES["mesh"]


def test_the_table_of_counts():
    train = SplitCounts(
        read=12345, linked=12000, named=6000, kept=4, dropped={"composite": 345}, gold_at=[1, 1, 0]
    )
    test = SplitCounts(read=2, linked=2, named=2, kept=2, gold_at=[0, 0, 1], malformed={"bad": 7})
    table = counts_table(Counts(9, 9, 3, splits={"train": train, "test": test}))
    rows = {cells[1].strip(): cells[2:4] for cells in (r.split("|") for r in table.splitlines())}
    rows = {name: tuple(cell.strip() for cell in cells) for name, cells in rows.items()}
    assert rows[""] == ("train", "test")
    assert rows["mentions read"] == ("12,345", "2")
    assert rows["dropped: composite"] == ("345", "0")
    assert rows["malformed: bad"] == ("0", "7")
    assert rows["recall@1 of retrieval, of the kept"] == ("0.250", "0.000")
    assert rows["recall@3 of retrieval, of the kept"] == ("0.500", "0.500")
    assert rows["recall@3 of retrieval, of the linked"] == ("0.250", "0.500")
    assert "random candidates" not in rows
    assert not any("recall@5" in row for row in rows)


DOCUMENTS = "".join(
    f"{number}|t|A fever of case {number}.\n{number}|a|No more.\n"
    f"{number}\t2\t7\tfever\tDisease\tD1\n\n"
    for number in range(3)
)


@pytest.fixture
def prepared(tmp_path):
    datasets.disable_progress_bars()
    folder = tmp_path / "private folder"
    folder.mkdir()
    blocks = [block + "\n\n" for block in DOCUMENTS.strip().split("\n\n")]
    files = {split: folder / f"{split}.txt" for split in ("train", "validation", "test")}
    for path, block in zip(files.values(), blocks, strict=True):
        path.write_text(block)
    files["ontology"] = folder / "names.tsv"
    files["ontology"].write_text("D1\tFever\nD2\tCough\n")
    settings = {"num_candidates": 2, "retrieval": "bm25"}
    builder = Pubtator(data_files=files, cache_dir=str(tmp_path / "cache"), **settings)
    builder.download_and_prepare()
    return builder, folder


def test_a_card_tells_fields_licences_files_counts_and_code(prepared, monkeypatch, tmp_path):
    builder, folder = prepared
    card = dataset_card(builder, "mine", Terms(OPEN, None, "I wrote it"), "org/name")
    for field in FEATURES:
        assert f"`{field}`" in card
    assert 'load_dataset("org/name", "mine")' in card
    assert "[CC BY 4.0](https://example.org/by); cite Doe (2020)" in card
    assert "names of the concepts: licence not known" in card
    assert "for this reason: I wrote it" in card
    assert "license: other" in card
    digest = hashlib.sha256((folder / "names.tsv").read_bytes()).hexdigest()
    assert f"| `ontology` | `names.tsv` | `{digest}` |" in card
    assert "private folder" not in card
    assert counts_table(builder.counts) in card
    # The code of the card, run beside the files, makes the same examples.
    code = re.findall(r"```python\n(.*?)```", card, re.DOTALL)[-1]
    monkeypatch.chdir(folder)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "other")
    made: dict[str, datasets.DatasetDict] = {}
    exec(code, made)
    assert {split: rows.to_list() for split, rows in made["data"].items()} == {
        split: rows.to_list() for split, rows in builder.as_dataset().items()
    }


def test_a_card_that_was_made_to_do_harm_is_refused(prepared):
    builder, _ = prepared
    bomb = "---\na: &a [x, x, x, x, x, x, x, x]\n"
    for old, new in ("ab", "bc", "cd", "de", "ef", "fg", "gh"):
        bomb += f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for metadata in (bomb, "---\na: [\n"):
        with pytest.raises(DataError, match=r"^the card of org/name is damaged .*; mend it$"):
            dataset_card(builder, "mine", Terms(OPEN, None, "mine"), "org/name", f"{metadata}---\n")
