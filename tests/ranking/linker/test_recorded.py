"""A ranker says how its examples were made, and the linker made of it needs not be told."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from huggingface_hub import HfApi
from ranking.tiny_corpus import TinyCorpus
from transformers import PreTrainedConfig

from hf_kfc.errors import DataError
from hf_kfc.ranking import DataArguments, EntityLinker, load_examples, record_settings
from hf_kfc.ranking.push_dataset import push_to_hub, save_dataset
from hf_kfc.ranking.tasks import TASKS, Task

MADE = {"retrieval": "tfidf", "num_candidates": 6, "context_words": 3, "show_types": True}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def builder():
    builder = TinyCorpus(config_name="patients", **MADE)
    builder.download_and_prepare()
    return builder


def recorded(dataset, **options):
    model = SimpleNamespace(config=PreTrainedConfig())
    data = DataArguments(str(dataset), max_length=48, **options)
    examples = load_examples(data.dataset, data.dataset_config, max_examples=data.max_examples)
    record_settings(model, data, examples["train"])
    return model.config.linker


def test_a_task_a_folder_and_the_hub_tell_the_same(builder, tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "tiny", Task(TinyCorpus, "patients", config=MADE))
    save_dataset(builder, tmp_path / "prepared", "patients")
    whole = MADE | {"max_length": 48}
    assert recorded("tiny", max_train_examples=5) == whole
    assert recorded(tmp_path / "prepared") == whole
    assert recorded(f"{tmp_path / 'prepared'}:patients") == whole
    # Older ones do not tell all; they were made as is done by default.
    counts = tmp_path / "prepared" / "patients" / "counts.json"
    kept = {k: v for k, v in json.loads(counts.read_text()).items() if k not in list(MADE)[2:]}
    counts.write_text(json.dumps(kept))
    assert recorded(tmp_path / "prepared") == whole | {
        "context_words": 10,
        "show_types": False,
    }
    builder.as_dataset().save_to_disk(str(tmp_path / "bare"))
    assert recorded(tmp_path / "bare") == {
        "retrieval": "bm25",
        "num_candidates": 10,
        "context_words": 10,
        "show_types": False,
        "max_length": 48,
    }
    counts.write_text(json.dumps(kept | {"retrieval": "\x1b[2J"}))
    with pytest.raises(DataError, match=r"retrieval is '\\x1b\[2J'; give bm25 or tfidf"):
        recorded(tmp_path / "prepared")


ON_THE_HUB = """
import sys
from transformers import PreTrainedConfig
from hf_kfc.ranking import DataArguments, load_examples, record_settings
class Model: config = PreTrainedConfig()
for dataset in ("org/ranking", "org/ranking:patients", "org/bare"):
    data = DataArguments(dataset)
    record_settings(Model, data, load_examples(dataset)["train"])
    print(Model.config.linker["retrieval"], Model.config.linker["num_candidates"])
"""


def test_a_data_set_on_the_hub_tells_too(builder, hub, tmp_path):
    push_to_hub(builder, "org/ranking", "patients", token=hub.token, endpoint=hub.endpoint)
    bare = {split: rows.to_list() for split, rows in builder.as_dataset().items()}
    for split, rows in bare.items():
        path = tmp_path / f"{split}.parquet"
        datasets.Dataset.from_list(rows).to_parquet(path)
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo("org/bare", repo_type="dataset")
    for split in bare:
        api.upload_file(
            path_or_fileobj=tmp_path / f"{split}.parquet",
            path_in_repo=f"{split}.parquet",
            repo_id="org/bare",
            repo_type="dataset",
        )
    ended = subprocess.run(
        [sys.executable, "-c", ON_THE_HUB],
        env=hub.environment(tmp_path / "home"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stdout.split("\n")[:3] == ["tfidf 6", "tfidf 6", "bm25 10"], ended.stderr


def test_a_linker_does_as_its_ranker_says(model, tokenizer, ontology, tmp_path, monkeypatch):
    own = {"retrieval": "tfidf", "num_candidates": 5, "max_length": 44}
    monkeypatch.setattr(model.config, "linker", own, raising=False)
    model.save_pretrained(tmp_path / "ranker")
    tokenizer.save_pretrained(tmp_path / "ranker")
    options = {"ontology": ontology, "cache_dir": tmp_path, "max_name_length": 12}
    linker = EntityLinker.from_pretrained(tmp_path / "ranker", **options)
    assert {name: getattr(linker.settings, name) for name in own} == own
    told = EntityLinker.from_pretrained(tmp_path / "ranker", **options, retrieval="bm25")
    assert (told.settings.retrieval, told.settings.num_candidates) == ("bm25", 5)
    told.save_pretrained(tmp_path / "linker")  # a linker's own settings go before its ranker's
    again = EntityLinker.from_pretrained(tmp_path / "linker", cache_dir=tmp_path)
    assert again.settings == told.settings


@pytest.mark.parametrize(
    ("linker", "message"),
    [
        ([1], "it is no object"),
        ("tfidf", "it is no object"),
        (None, "it is no object"),
        ({"retrieval": "dense"}, "retrieval is 'dense'"),
        ({"retrieval": []}, r"retrieval is \[\]"),
        ({"num_candidates": 10**9}, "num_candidates is 1000000000"),
        ({"max_length": True}, "max_length is True"),
        ({"\x1b[2J": 1}, r"no setting '\\x1b\[2J'"),
        ({"device": "cuda"}, "no setting 'device'"),
    ],
)
def test_what_a_hostile_ranker_says_is_one_line(linker, message, model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"linker": linker}))
    with pytest.raises(DataError, match=rf"^'linker' in config.json of .*: .*{message}") as caught:
        EntityLinker.from_pretrained(tmp_path, [("A", "a")], cache_dir=tmp_path)
    assert str(caught.value).isprintable()
