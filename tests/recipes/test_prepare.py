"""From raw files to a ready data set by one command."""

import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
from recipe_runs import ROOT, content

NOTES = {
    "train": ("A fever and a cough.", [(2, 7, "fever", "D1"), (14, 19, "cough", "D2")]),
    "validation": ("No fever today.", [(3, 8, "fever", "D1")]),
    "test": ("Pyrexia, chills.", [(0, 7, "Pyrexia", "D1"), (9, 15, "chills", "-1")]),
}


@pytest.fixture
def corpus(tmp_path):
    """A PubTator corpus of the user's own, as the command names its files."""
    paths = {split: tmp_path / "own" / f"{split}.txt" for split in NOTES}
    paths["ontology"] = tmp_path / "own" / "names.tsv"
    paths["ontology"].parent.mkdir()
    paths["ontology"].write_text("D1\tFever\nD2\tCough\nD3\tChills\n")
    for split, (text, marks) in NOTES.items():
        rows = [f"{split}|t|{text}", f"{split}|a|"]
        rows += [f"{split}\t{a}\t{b}\t{words}\tSign\t{id_}" for a, b, words, id_ in marks]
        paths[split].write_text("\n".join([*rows, "", ""]))
    files = [f"{key}={path}" for key, path in paths.items()]
    settings = ["num_candidates=2", "retrieval=bm25"]
    return ["--corpus", "pubtator", "--files", *files, "--config", *settings], paths


def test_in_a_process_of_its_own_with_two_at_work(recipes, corpus, tmp_path):
    arguments, _ = corpus
    output = tmp_path / "prepared"
    own = ("--name", "mine", "--output_dir", output, "--num_proc", "2")
    result = recipes.start("prepare", *arguments, *own)
    assert result.status == 0, result.err
    assert "| **kept as examples** | 2 | 1 | 1 |" in result.out
    assert result.out.endswith(f"saved in {output}\n")
    assert "mentions" in result.err  # the progress bars
    data = datasets.load_dataset(str(output), "mine", cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in data.items()} == {
        "train": 2,
        "validation": 1,
        "test": 1,
    }
    assert (output / "mine" / "counts.json").is_file()


def test_the_data_of_the_recipes_is_what_its_readme_makes(recipes, tmp_path):
    """To the byte, by the command in the README of recipes/data."""
    readme = (ROOT / "recipes" / "data" / "README.md").read_text("utf-8")
    code = readme.split("```python\n")[1].split("```")[0].replace("recipes/data", str(tmp_path))
    environment = {"HF_DATASETS_CACHE": str(recipes.cache), "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=os.environ | environment, cwd=tmp_path
    )
    for name in ("articles", "patients", "notes"):
        for split in ("train", "validation", "test"):
            path = Path(name) / name / f"{split}.parquet"
            made = (tmp_path / path).read_bytes()
            assert made == (ROOT / "recipes" / "data" / path).read_bytes()


def test_files_of_the_users_own(recipes, corpus, tmp_path):
    arguments, _ = corpus
    output = tmp_path / "prepared"
    result = recipes.call("prepare", *arguments, "--output_dir", output)
    assert result.status == 0, result.err
    assert "| mentions read | 2 | 1 | 2 |" in result.out
    data = datasets.load_dataset(str(output), cache_dir=str(tmp_path / "cache"))
    rows = [row["candidate_ids"][row["label"]] for row in data["train"]]
    assert (rows, len(data["test"])) == (["D1", "D2"], 1)
    again = recipes.call("prepare", *arguments, "--output_dir", output)
    assert again.status == 0, again.err


def test_pushing_by_the_command(hub, recipes, corpus, tmp_path):
    arguments, _ = corpus
    arguments += ["--output_dir", tmp_path / "prepared", "--push_to_hub", "org/name"]
    refused = recipes.call("prepare", *arguments)
    assert refused.status == 1
    assert "pubtator: not pushed, the licence of its text is not known" in refused.errors[0]
    assert not (tmp_path / "prepared").exists()
    result = subprocess.run(
        [sys.executable, "recipes/prepare.py", *arguments, "--redistribute", "made up for a test"],
        cwd=ROOT,
        env=hub.environment(tmp_path / "home") | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    repository = hub.repositories["dataset", "org/name"]
    head = repository.resolve("main")
    assert f"pushed as {hub.endpoint}/datasets/org/name/commit/{head.sha}" in result.stdout
    assert repository.private
    own = {name: digest for name, digest in content(tmp_path / "prepared").items() if digest}
    own.pop("README.md")  # it says from where to load
    assert own.items() <= {name: blob.sha256 for name, blob in head.files.items()}.items()


ANY_FILES = [f"{key}={__file__}" for key in ("train", "validation", "test", "ontology")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either a task or a corpus"),
        (["--task", "bc5cdr", "--corpus", "pubtator"], "give either a task or a corpus"),
        (["--task", "nosuch"], "unknown task 'nosuch'; use one of"),
        (["--corpus", "nosuch"], "unknown corpus 'nosuch'; use one of"),
        (["--task", "bc5cdr", "--files", "train=a"], "'bc5cdr' has files of its own"),
        (["--task", "bc5cdr"], "'bc5cdr' reads files; pass data_dir"),
        (["--task", "bc5cdr", "--config", "k=1"], "bc5cdr has no setting 'k'; use num_cand"),
        (["--task", "bc5cdr", "--config", "seed"], "config: 'seed' is not KEY=VALUE"),
        (["--task", "bc5cdr", "--config", "seed=a"], "seed is 'a'; give a value such as 0"),
        (
            ["--corpus", "pubtator", "--files", *ANY_FILES, "--config", "num_candidates=1"],
            "num_candidates is 1; give at",
        ),
        (["--task", "bc5cdr", "--ontology_license", "x"], "unknown ontology license 'x'"),
        (["--corpus", "pubtator", "--files", "train=/no/file"], "was given no file"),
    ],
)
def test_bad_arguments_are_told_in_one_line(recipes, tmp_path, arguments, message):
    result = recipes.call("prepare", *arguments, "--output_dir", tmp_path / "new")
    assert result.status == 1, result
    assert len(result.errors) == 1, result.err
    assert message in result.errors[0]
    assert not list(tmp_path.iterdir())


def test_a_malformed_file_is_told_by_its_line_and_leaves_the_older_set(recipes, corpus, tmp_path):
    arguments, paths = corpus
    output = tmp_path / "prepared"
    assert recipes.call("prepare", *arguments, "--output_dir", output).status == 0
    before = content(output)
    paths["test"].write_text(paths["test"].read_text().replace("\t0\t7\t", "\t1\t8\t"))
    result = recipes.call("prepare", *arguments, "--output_dir", output)
    assert result.status == 1
    assert f"{paths['test']}:3: " in result.errors[0]
    assert content(output) == before
    counted = recipes.call("prepare", *arguments, "on_error=count", "--output_dir", output)
    assert counted.status == 1  # the one mention of the split is gone
    assert "pubtator/test: no usable mention" in counted.errors[0]
    assert content(output) == before


def test_a_folder_with_something_else_is_left_alone(recipes, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    result = recipes.call("prepare", "--task", "bc5cdr", "--output_dir", tmp_path)
    assert (result.status, len(result.errors)) == (1, 1)
    assert "choose another folder" in result.errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
