import json
import math
import sys
from pathlib import Path

import pytest

from hf_kfc.errors import HfKfcError
from laboratory.toys import ToyArguments, cnn_fisher, run_toys, two_parameters
from laboratory.toys.drawing import (
    save_cnn_fisher_figure,
    save_hessian_figure,
    save_two_parameter_figure,
)

NAMES = ("two_parameters", "cnn_fisher", "hessian_lesson")
SAVE = dict(
    zip(
        NAMES, (save_two_parameter_figure, save_cnn_fisher_figure, save_hessian_figure), strict=True
    )
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("results") / "toys"
    run_toys(ToyArguments(str(directory)))
    return directory


@pytest.fixture(scope="module")
def results(folder) -> dict:
    return json.loads((folder / "results.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def runs(results) -> dict:
    return {
        (run["penalty_of"], run["strength"]): run["curves"]
        for run in results["hessian_lesson"]["runs"]
    }


def test_folder_holds_numbers_and_pictures_of_moderate_size(folder):
    pictures = {f"{name}.{suffix}" for name in NAMES for suffix in ("png", "svg")}
    assert {path.name for path in folder.iterdir()} == {"results.json", *pictures}
    assert all(10_000 < path.stat().st_size < 300_000 for path in folder.iterdir())
    for name in NAMES:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / f"{name}.svg").read_text("utf-8")


def test_results_say_how_they_were_made(results):
    assert set(results) == {*NAMES, "command", "versions"}
    assert results["versions"]["torch"]


def test_stored_numbers_are_the_computed_ones_and_the_same_each_time(results):
    assert results["two_parameters"] == two_parameters()
    assert results["cnn_fisher"] == cnn_fisher()


def test_a_list_of_numbers_is_one_line(folder):
    lines = (folder / "results.json").read_text("utf-8").splitlines()
    assert len(lines) < 2000
    assert not [line for line in lines if line.strip().rstrip(",").lstrip("-").isdecimal()]


@pytest.mark.parametrize("seed", range(5))
def test_kronecker_keeps_more_of_the_old_task_than_the_diagonal(seed):
    toy = two_parameters(seed)
    ends, before = toy["end_points"], toy["anchor"]["old_loss"]
    lost = {name: end["old_loss"] - before for name, end in ends.items()}
    assert 0 < lost["kronecker"] < 0.8 * lost["diagonal"]
    assert lost["full"] < 0.8 * lost["diagonal"]
    assert lost["diagonal"] < 0.5 * lost["none"]
    assert all(end["new_loss"] < toy["anchor"]["new_loss"] for end in ends.values())
    assert min(ends, key=lambda name: ends[name]["new_loss"]) == "none"
    assert 0.01 < toy["errors"]["kronecker"] < 0.5 * toy["errors"]["diagonal"]


def test_kronecker_ends_where_the_exact_fisher_does(results):
    ends = results["two_parameters"]["end_points"]
    target = ends["full"]["parameters"]
    away = {name: math.dist(end["parameters"], target) for name, end in ends.items()}
    assert away["kronecker"] < 0.2 * away["diagonal"] < away["none"]


def test_two_by_two_matrices_and_grids_are_what_they_say(results):
    toy = results["two_parameters"]
    full, kronecker, diagonal = (toy["fisher"][k] for k in ("full", "kronecker", "diagonal"))
    assert diagonal[0][1] == diagonal[1][0] == 0
    assert [diagonal[i][i] for i in range(2)] == pytest.approx([full[i][i] for i in range(2)])
    assert kronecker[0][1] > 0.9 * kronecker[0][0]  # the inputs' correlation
    grid = toy["grid"]
    for task, point in (("old", toy["anchor"]), ("new", toy["end_points"]["none"])):
        rows = grid[f"{task}_loss"]
        lowest, j, i = min((v, j, i) for j, row in enumerate(rows) for i, v in enumerate(row))
        assert lowest == pytest.approx(point[f"{task}_loss"], abs=0.01)
        nearest = (grid["first"][i], grid["second"][j])
        assert math.dist(nearest, point["parameters"]) < 0.3


def test_kronecker_is_nearer_than_the_diagonal_in_every_block_of_the_classifier(results):
    errors = results["cnn_fisher"]["models"]["text_classifier"]["errors"]
    assert set(errors) == {"embeddings", "convolution", "dense", "classifier"}
    for block in errors.values():
        assert block["kronecker_eigen"] < block["kronecker"] < block["diagonal"] < 1
    assert errors["dense"]["kronecker"] < 0.6 * errors["dense"]["diagonal"]


def test_of_a_ranker_only_the_eigenvalues_save_the_linear_layers(results):
    errors = results["cnn_fisher"]["models"]["ranker"]["errors"]
    for layer in ("dense", "classifier"):
        assert errors[layer]["kronecker"] > 2 > errors[layer]["diagonal"]
        assert errors[layer]["kronecker_eigen"] < 1
    assert errors["embeddings"]["kronecker"] < errors["embeddings"]["diagonal"]


def test_parts_of_matrices_fit_each_other(results):
    for picture in results["cnn_fisher"]["pictures"]:
        size = len(picture["diagonal"])
        assert size % picture["outputs"] == 0
        for matrix in (picture["exact"], picture["kronecker"]):
            assert len(matrix) == size
            assert matrix == [list(column) for column in zip(*matrix, strict=True)]
        assert [picture["exact"][i][i] for i in range(size)] == picture["diagonal"]


def test_part_of_the_hessian_is_negative_and_the_library_refuses_it(results):
    lesson = results["hessian_lesson"]
    assert lesson["hessian"]["negative_share"] > 0.1
    assert lesson["hessian"]["lowest"] < -0.01
    assert lesson["fisher"]["negative_share"] == 0
    assert lesson["refusal"]
    assert all("diagonal has a negative entry" in phrase for phrase in lesson["refusal"])


def test_the_hessians_penalty_runs_away_and_takes_both_tasks_along(runs):
    before, after = ({k: v[at] for k, v in runs["hessian", 8.0].items()} for at in (0, -1))
    assert after["penalty"] < -1e6
    assert after["old_accuracy"] < before["old_accuracy"] - 0.2
    assert after["new_accuracy"] < before["new_accuracy"] - 0.1
    assert after["old_loss"] > 100 * before["old_loss"]
    lowest = [runs["hessian", strength]["penalty"][-1] for strength in (0.5, 2.0, 8.0)]
    assert lowest == sorted(lowest, reverse=True)


@pytest.mark.parametrize("penalty", ["fisher", "clamped"])
def test_a_penalty_without_negative_entries_holds(penalty, runs):
    curves = runs[penalty, 8.0]
    assert 0 <= min(curves["penalty"]) <= max(curves["penalty"]) < 1
    assert curves["old_accuracy"][-1] > curves["old_accuracy"][0] - 0.05
    assert curves["new_accuracy"][-1] > curves["new_accuracy"][0]
    assert runs["none", 0.0]["old_accuracy"][-1] < curves["old_accuracy"][-1] - 0.1


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("two_parameters", ("exact Fisher", "Kronecker (KFC), error 17%", "anchor", "diagonal")),
        ("cnn_fisher", ("text classifier: convolution", "ranker: dense", "exact Fisher")),
        ("hessian_lesson", ("λ = 0.5 (Bayesian)", "λ = 8", "Hessian's diagonal", "no penalty")),
    ],
)
def test_a_picture_can_be_drawn_from_the_stored_numbers_alone(
    name, texts, results, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules["matplotlib"].rcParams, "svg.fonttype", "none")
    SAVE[name](results[name], tmp_path / "picture.svg")
    drawn = (tmp_path / "picture.svg").read_text("utf-8")
    assert [text for text in texts if f">{text}<" not in drawn] == []


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(HfKfcError, match="choose another folder"):
        run_toys(ToyArguments(str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
