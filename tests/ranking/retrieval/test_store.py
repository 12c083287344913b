import json
import logging
import multiprocessing
import pickle
from pathlib import Path

import pytest
from retrieval_cases import named

from hf_kfc.errors import DataError, HfKfcError
from hf_kfc.ranking.retrieval import RETRIEVERS, Bm25Retriever, TfidfRetriever, get_retriever

NAMES = ["renal failure", "acute renal failure", "heart failure", "cough", "Schnupfen (akut)"]
QUERIES = ["acute failure", "Akut", "", "nothing of it: ü"]

both = pytest.mark.parametrize("name", RETRIEVERS)


def only_folder(cache: Path) -> Path:
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    return folder


def forbid_building(monkeypatch):
    def refuse(self, ontology):
        raise AssertionError("built again")

    for kind in RETRIEVERS.values():
        monkeypatch.setattr(kind, "__init__", refuse)


@both
def test_an_index_is_built_once_and_then_mapped(name, tmp_path, monkeypatch):
    ontology = named(*NAMES)
    expected = RETRIEVERS[name](ontology).search(QUERIES, 3)
    first = get_retriever(name, ontology, tmp_path)
    forbid_building(monkeypatch)
    again = get_retriever(name, named(*NAMES), tmp_path)

    assert first.search(QUERIES, 3) == again.search(QUERIES, 3) == expected
    assert again.num_names == len(NAMES)
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert str(only_folder(tmp_path) / "weights.npy") in maps.read_text()


def test_the_default_folder_is_in_the_cache_of_datasets(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
    get_retriever("bm25", named(*NAMES))
    assert only_folder(tmp_path / "hf_kfc_indexes").name.startswith("bm25-")


def test_each_content_retriever_and_version_has_an_index_of_its_own(tmp_path, monkeypatch):
    for names in (NAMES, NAMES[::-1], [*NAMES[:-1], "Schnupfen"]):
        get_retriever("bm25", named(*names), tmp_path)
    get_retriever("tfidf", named(*NAMES), tmp_path)
    monkeypatch.setattr(Bm25Retriever, "VERSION", Bm25Retriever.VERSION + 1)
    get_retriever("bm25", named(*NAMES), tmp_path)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 5


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


FILES = (
    "index.json",
    "vocabulary.json",
    "owners.npy",
    "offsets.npy",
    "names.npy",
    "weights.npy",
    "peaks.npy",
    "counts.npy",
    "feature_weights.npy",
)


@both
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_index_is_built_again_with_a_warning(name, file, tmp_path, caplog):
    ontology = named(*NAMES)
    expected = get_retriever(name, ontology, tmp_path).search(QUERIES, 3)
    folder = only_folder(tmp_path)
    assert {path.name for path in folder.iterdir()} == set(FILES)
    for damage in (cut, flip, Path.unlink):
        caplog.clear()
        damage(folder / file)
        with pytest.raises(DataError, match="not a saved index"):
            RETRIEVERS[name].load(folder)
        with caplog.at_level(logging.WARNING):
            assert get_retriever(name, ontology, tmp_path).search(QUERIES, 3) == expected
        (record,) = caplog.records
        assert record.getMessage().startswith(f"{folder}: not a saved index (")
        assert record.getMessage().endswith("; it is built again")


@pytest.mark.parametrize("content", ["[]", "{}", '{"retriever": 3}', '"text"', "null", "\xff"])
def test_a_description_of_something_else_is_a_data_error(content, tmp_path):
    get_retriever("bm25", named(*NAMES), tmp_path)
    folder = only_folder(tmp_path)
    (folder / "index.json").write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match="not a saved index"):
        Bm25Retriever.load(folder)


@both
@pytest.mark.parametrize("query", [None, 3, ["knee"], b"knee", "half \ud83d"])
def test_a_query_that_is_no_text_is_refused(name, query):
    retriever = RETRIEVERS[name](named(*NAMES))
    with pytest.raises(DataError, match=r"query .* is no text; leave it out or correct it"):
        retriever.search(["knee", query], 1)


def test_an_index_of_another_retriever_or_version_is_refused(tmp_path):
    get_retriever("bm25", named(*NAMES), tmp_path)
    folder = only_folder(tmp_path)
    with pytest.raises(DataError, match=r"\(it is of Bm25Retriever, version \d\); remove"):
        TfidfRetriever.load(folder)
    description = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(description | {"version": 0}))
    with pytest.raises(DataError, match=r"\(it is of Bm25Retriever, version 0\); remove"):
        Bm25Retriever.load(folder)


def build(arguments: tuple[str, Path]) -> list[list[tuple[int, float]]]:
    name, cache = arguments
    return get_retriever(name, named(*NAMES), cache).search(QUERIES, 3)


def test_two_processes_at_once(tmp_path):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map(build, [("bm25", tmp_path)] * 4, chunksize=1)
    assert found == [build(("bm25", tmp_path))] * 4
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [only_folder(tmp_path)]


@both
def test_a_mapped_retriever_pickles_as_a_path(name, tmp_path):
    names = [f"name {number}" for number in range(2000)]
    mapped = get_retriever(name, named(*names), tmp_path)
    expected = mapped.search(["name 77"], 3)
    assert len(pickle.dumps(mapped)) < 500
    assert pickle.loads(pickle.dumps(mapped)).search(["name 77"], 3) == expected
    in_memory = RETRIEVERS[name](named(*names))
    assert pickle.loads(pickle.dumps(in_memory)).search(["name 77"], 3) == expected


def test_errors(tmp_path):
    with pytest.raises(DataError, match=r"^retriever 'dense'; use bm25 or tfidf$"):
        get_retriever("dense", named("pain"), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(HfKfcError, match="is not a folder"):
        get_retriever("bm25", named("pain"), tmp_path / "file")
