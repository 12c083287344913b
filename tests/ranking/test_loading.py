"""Examples from folders, the Hub and tasks; rankers with their tokenizers."""

from pathlib import Path

import datasets
import pytest
from tiny_corpus import TinyCorpus

from hf_kfc.errors import DataError
from hf_kfc.ranking import (
    DataArguments,
    OldDataArguments,
    dataset_name,
    encode_splits,
    find_sources,
    load_examples,
    load_pretrained,
    new_cnn,
)
from hf_kfc.ranking.tasks import TASKS, Task

ARTICLES = Path(__file__).parents[2] / "recipes" / "data" / "articles"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def articles(tmp_path_factory) -> datasets.DatasetDict:
    cache = tmp_path_factory.mktemp("cache")
    splits = datasets.load_dataset(str(ARTICLES), cache_dir=str(cache))
    return datasets.DatasetDict({name: rows.select(range(30)) for name, rows in splits.items()})


def ids(splits: datasets.DatasetDict) -> dict[str, list[str]]:
    return {name: rows["id"][:] for name, rows in splits.items()}


@pytest.mark.parametrize("form", ["save_to_disk", "parquet", "jsonl", "arrow"])
def test_a_folder_in_any_form_gives_the_same(form, articles, tmp_path):
    folder = tmp_path / "mine"
    if form in ("save_to_disk", "arrow"):
        articles.save_to_disk(str(folder))
    if form == "arrow":  # as plain files, without the words of save_to_disk
        for split in articles:
            (data,) = (folder / split).glob("*.arrow")
            data.rename(folder / f"{split}.arrow")
            for path in (folder / split).iterdir():
                path.unlink()
            (folder / split).rmdir()
        (folder / "dataset_dict.json").unlink()
    if form in ("parquet", "jsonl"):
        folder.mkdir()
        for split, rows in articles.items():
            write = rows.to_parquet if form == "parquet" else rows.to_json
            write(folder / f"{split}.{form}")
    assert ids(load_examples(folder)) == ids(articles)


def test_fewer_examples_are_drawn_as_the_builder_draws_them(articles):
    limits = {"train": 7, "test": 3}
    drawn = load_examples(ARTICLES, max_examples=limits, seed=1)
    assert {name: len(rows) for name, rows in drawn.items()} == limits | {"validation": 500}
    whole = ids(load_examples(ARTICLES))["train"]
    places = [whole.index(own) for own in drawn["train"]["id"]]
    assert places == sorted(places)
    other = load_examples(ARTICLES, max_examples=limits, seed=2)
    assert ids(other)["train"] != ids(drawn)["train"]
    assert ids(load_examples(ARTICLES, max_examples={"train": 9999}))["train"] == whole


def test_a_task_is_known_by_its_name_unless_there_is_a_folder(articles, tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "tiny", Task(TinyCorpus))
    monkeypatch.chdir(tmp_path)
    of_task = ids(load_examples("tiny", max_examples={"train": 1}))
    assert len(of_task["train"]) == 1
    articles.save_to_disk("tiny")
    assert ids(load_examples("tiny")) == ids(articles)


def test_a_data_set_of_the_hub_at_a_revision_and_a_configuration(monkeypatch, articles):
    """What the client is asked for; it is tested with a Hub by those who publish."""
    asked = []

    def load_dataset(path, name, revision):
        asked.append((path, name, revision))
        return articles

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    load_examples("org/ranking@v1", "psytar")
    load_examples("org/mine")
    load_examples("org/ranking@v1:psytar")
    load_examples("org/ranking:psytar")
    assert asked == [
        ("org/ranking", "psytar", "v1"),
        ("org/mine", None, None),
        ("org/ranking", "psytar", "v1"),
        ("org/ranking", "psytar", None),
    ]


def test_a_configuration_of_a_folder_may_stand_after_a_colon(articles, tmp_path, monkeypatch):
    assert ids(load_examples(f"{ARTICLES}:articles")) == ids(load_examples(ARTICLES, "articles"))
    with pytest.raises(DataError, match=r"articles:nosuch' cannot|articles' cannot be loaded"):
        load_examples(f"{ARTICLES}:nosuch")
    monkeypatch.chdir(tmp_path)
    articles.save_to_disk("a:b")  # a folder of that name is one
    assert ids(load_examples("a:b")) == ids(articles)


@pytest.mark.parametrize(
    ("dataset", "config", "name"),
    [
        ("prepared/mine", None, "mine"),
        ("prepared/mine/", None, "mine"),
        ("org/ranking@v1", None, "ranking"),
        ("org/ranking@v1", "psytar", "psytar"),
        ("org/ranking@v1:psytar", None, "psytar"),
        ("prepared/all:psytar", None, "psytar"),
        ("bc5cdr", None, "bc5cdr"),
    ],
)
def test_a_data_set_that_nobody_names(dataset, config, name):
    assert dataset_name(dataset, config) == name
    assert DataArguments(dataset, config).name == name
    assert DataArguments(dataset, config, name="ours").name == "ours"
    assert OldDataArguments([dataset]).old_names == [dataset_name(dataset)]


def test_limits_by_split():
    data = DataArguments("x", max_train_examples=5, max_test_examples=2)
    assert data.max_examples == {"train": 5, "test": 2}
    with pytest.raises(DataError, match="max_validation_examples is 0; give at least 1"):
        DataArguments("x", max_validation_examples=0)


def test_a_new_cnn_is_the_seeds_and_loads_again_as_it_was(articles, tmp_path):
    model, tokenizer = new_cnn(articles["train"], hidden_size=8, vocab_size=300, seed=3)
    assert model.config.hidden_size == 8
    assert len(tokenizer) == model.config.vocab_size <= 300
    same, _ = new_cnn(articles["train"], hidden_size=8, vocab_size=300, seed=3)
    other, _ = new_cnn(articles["train"], hidden_size=8, vocab_size=300, seed=4)
    assert (same.dense.weight == model.dense.weight).all()
    assert (other.dense.weight != model.dense.weight).any()
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded, again = load_pretrained(tmp_path / "saved")
    assert (loaded.dense.weight == model.dense.weight).all()
    assert encode_splits(articles, again, 96) == encode_splits(articles, tokenizer, 96)
    with pytest.raises(DataError, match="vocab_size is 0; give at least 1"):
        new_cnn(articles["train"], vocab_size=0)


def test_folders_are_their_own_sources(tmp_path):
    model, prior = str(tmp_path), str(tmp_path.parent)
    assert find_sources(model, [prior, model]) == (model, [prior, model])
