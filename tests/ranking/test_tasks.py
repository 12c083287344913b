import re
from typing import Any

import datasets
import pytest
from real_data import DATA, needs_data
from tiny_corpus import TinyCorpus

from hf_kfc.errors import DataError
from hf_kfc.ranking import tasks
from hf_kfc.ranking.checks import check_examples
from hf_kfc.ranking.tasks import TASKS, Task, prepare_task, register_task

SIZES = {"train": 18, "validation": 9, "test": 7}


def load(name: str, **options: Any) -> datasets.DatasetDict:
    return prepare_task(name, max_examples=SIZES, **options).as_dataset()


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(tasks, "TASKS", dict(TASKS))
    register_task("tiny", Task(TinyCorpus, "patients"))


def test_a_task_of_ones_own_is_known_by_its_name(tiny, tmp_path):
    builder = prepare_task("tiny", max_examples=SIZES, cache_dir=tmp_path)
    assert {name: split.kept for name, split in builder.counts.splits.items()} == SIZES
    assert str(builder.cache_dir).startswith(str(tmp_path))
    register_task("tiny", Task(TinyCorpus, "patients"))  # the same again
    with pytest.raises(DataError, match="there is a task 'tiny' already; choose another name"):
        register_task("tiny", Task(TinyCorpus, "articles"))


def test_widths_and_seed_can_be_chosen(tiny, tmp_path):
    widths = {"num_candidates": 3, "context_words": 0, "cache_dir": tmp_path}
    data = load("tiny", **widths)
    assert {len(row["candidate_ids"]) for row in data["test"]} == {3}
    assert set(data["test"]["left"]) == {""}
    other = load("tiny", seed=1, **widths)
    assert other["test"].to_list() != data["test"].to_list()


def test_errors_name_the_task_and_the_file(tiny, tmp_path):
    known = "medmentions, psytar, bc5cdr, codiesp.*, tiny"
    with pytest.raises(DataError, match=f"^unknown task 'umls'; use one of {known}$"):
        prepare_task("umls")
    with pytest.raises(DataError, match=r"^task 'tiny' has no setting 'width'; use .*num_candida"):
        prepare_task("tiny", width=3)
    with pytest.raises(
        DataError, match=r"^task 'psytar' reads files; pass data_dir, the folder wi"
    ):
        prepare_task("psytar")
    missing = re.escape(str(tmp_path / "bc5cdr" / "train_corpus.pubtator.txt.gz"))
    with pytest.raises(DataError, match=rf"^task 'bc5cdr': {missing} is missing; put it there or"):
        prepare_task("bc5cdr", data_dir=tmp_path)


@needs_data
def test_the_files_of_the_real_tasks_lie_where_the_registry_says():
    for task in TASKS.values():
        assert not [file for file in task.files.values() if not (DATA / file).is_file()]


@needs_data
def test_a_real_task(tmp_path):
    data = load("psytar", data_dir=DATA, cache_dir=tmp_path)
    assert {split: check_examples(examples) for split, examples in data.items()} == SIZES
