import re
from typing import Any

import datasets
import pytest
from real_data import DATA, needs_data

from hf_kfc.errors import DataError
from hf_kfc.ranking.checks import check_examples
from hf_kfc.ranking.tasks import TASKS, prepare_task

SIZES = {"train": 40, "validation": 20, "test": 30}


def load(name: str, **options: Any) -> datasets.DatasetDict:
    return prepare_task(name, max_examples=SIZES, **options).as_dataset()


@pytest.fixture(autouse=True)
def quiet():
    datasets.disable_progress_bars()


@pytest.mark.parametrize(
    ("name", "num_candidates", "context_words"),
    [("articles", 10, 10), ("notes", 25, 20), ("patients", 10, 10)],
)
def test_generated_tasks_have_the_widths_of_the_paper(
    tmp_path, name, num_candidates, context_words
):
    data = load(name, cache_dir=tmp_path)
    assert {split: check_examples(examples) for split, examples in data.items()} == SIZES
    for row in data["train"]:
        assert len(row["candidate_ids"]) == num_candidates
        assert max(len(row["left"].split()), len(row["right"].split())) <= context_words
    widest = max(len(row["left"].split()) for row in data["train"])
    assert widest == context_words


def test_widths_and_seed_can_be_chosen(tmp_path):
    widths = {"num_candidates": 4, "context_words": 0, "cache_dir": tmp_path}
    data = load("notes", **widths)
    assert {len(row["candidate_ids"]) for row in data["test"]} == {4}
    assert set(data["test"]["left"]) == {""}
    other = load("notes", seed=1, **widths)
    assert other["test"].to_list() != data["test"].to_list()


def test_prepare_task_keeps_the_counts(tmp_path):
    builder = prepare_task("patients", max_examples=SIZES, cache_dir=tmp_path)
    assert {name: split.kept for name, split in builder.counts.splits.items()} == SIZES
    assert str(builder.cache_dir).startswith(str(tmp_path))


def test_errors_name_the_task_and_the_file(tmp_path):
    known = "articles, notes, patients, medmentions, psytar, bc5cdr, codiesp"
    with pytest.raises(DataError, match=f"^unknown task 'umls'; use one of {known}$"):
        prepare_task("umls")
    with pytest.raises(DataError, match=r"^task 'notes' has no setting 'width'; use .*num_candida"):
        prepare_task("notes", width=3)
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
