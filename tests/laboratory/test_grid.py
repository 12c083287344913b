import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hf_kfc.curvature import CurvatureArguments
from hf_kfc.errors import ConsolidationError, DataError
from laboratory import (
    DataArguments,
    Grid,
    GridArguments,
    LearningArguments,
    RankerArguments,
    engine,
    grid,
    grid_table,
)
from laboratory.arguments import settings_of

L2, EWC = (0.001, 0.1), (1.0, 10.0, 100.0)
RANKER = RankerArguments(hidden_size=8, vocab_size=500)
DATA = DataArguments(train_examples=64, validation_examples=32, test_examples=32)
LEARNING = LearningArguments(epochs=1, learning_rate=0.01)
FIRST_SEED = 2 + len(L2) + len(EWC)  # the old task alone, none, l2 and ewc
RUNS = FIRST_SEED + 4


def arguments(results: Path, **changes: Any) -> GridArguments:
    values = {"methods": ["l2", "ewc"], "dampings": [0.1], "seeds": [0, 1]}
    tasks = {"old_task": "articles", "task": "patients", "results": str(results)}
    return GridArguments(**(tasks | values | changes))


def run(results: Path, learning: LearningArguments = LEARNING, **changes: Any) -> None:
    args = arguments(results, **changes)
    engine.run(Grid(args, RANKER, DATA, learning, CurvatureArguments()))


def read(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text("utf-8").splitlines()]


@pytest.fixture(autouse=True)
def few_strengths(monkeypatch):
    monkeypatch.setattr(grid, "_MULTIPLES", {"l2": L2, "ewc": EWC})


@pytest.fixture
def learnt(monkeypatch) -> list[tuple[str, int]]:
    """Task and number of priors of every call of ``learn``."""
    calls: list[tuple[str, int]] = []
    original = engine.learn

    def learn(start, task, collator, args, priors=(), **more):
        calls.append((task.name, len(priors)))
        return original(start, task, collator, args, priors, **more)

    monkeypatch.setattr(engine, "learn", learn)
    return calls


@pytest.fixture(scope="module")
def whole(tmp_path_factory, examples_cache) -> Path:
    """The results of a grid that was never stopped."""
    results = tmp_path_factory.mktemp("grid") / "new" / "results.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "_MULTIPLES", {"l2": L2, "ewc": EWC})
        patch.setattr("datasets.config.HF_DATASETS_CACHE", examples_cache)
        run(results)
    return results


@pytest.fixture
def results(whole, tmp_path) -> Path:
    """A copy of them."""
    path = tmp_path / "results.jsonl"
    path.write_bytes(whole.read_bytes())
    return path


def test_every_point_is_run_once(whole):
    header, *records = read(whole)
    assert header["settings"]["LearningArguments"] == settings_of(LEARNING)["LearningArguments"]
    assert header["versions"]
    assert header["command"]
    points = [
        (p["seed"], p["tasks"], p["method"], p.get("multiple"))
        for p in (record["point"] for record in records)
    ]
    both = ["articles", "patients"]
    assert points[:FIRST_SEED] == [
        (0, ["articles"], "individual", None),
        (0, both, "none", None),
        *((0, both, "l2", multiple) for multiple in L2),
        *((0, both, "ewc:0.1", multiple) for multiple in EWC),
    ]
    assert [point[:3] for point in points[FIRST_SEED:]] == [
        (1, ["articles"], "individual"),
        *((1, both, method) for method in ("none", "l2", "ewc:0.1")),
    ]
    for record in records:
        for split in ("validation", "test"):
            assert list(record[split]) == record["point"]["tasks"]
            assert all(0 <= value <= 1 for value in record[split].values())


def test_strengths_are_multiples_of_the_bayesian_value(whole):
    for record in read(whole)[1:]:
        point = record["point"]
        scale = {"l2": 1.0, "ewc:0.1": 64 / (2 * 64)}.get(point["method"])
        assert record["strengths"] == ([point["multiple"] * scale] if scale else [])


def test_later_seeds_use_the_strength_chosen_on_the_first_ones_development_splits(whole):
    records = read(whole)[1:]
    plain = records[1]
    for method in ("l2", "ewc:0.1"):
        first, later = (
            [r for r in records if (r["point"]["seed"], r["point"]["method"]) == (seed, method)]
            for seed in (0, 1)
        )

        def accuracy(record: dict[str, Any], task: str) -> tuple[float, float]:
            return record["validation"][task], -record["point"]["multiple"]

        least = plain["validation"]["patients"] - 0.01
        kept = [r for r in first if r["validation"]["patients"] >= least]
        best = max(
            kept or first, key=lambda r, k=kept: accuracy(r, "articles" if k else "patients")
        )
        assert [r["point"]["multiple"] for r in later] == [best["point"]["multiple"]]


def untimed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


@pytest.mark.parametrize("done", [3, FIRST_SEED], ids=str)
def test_a_stopped_grid_goes_on_where_it_was(done, whole, tmp_path, monkeypatch, learnt, capsys):
    results = tmp_path / "results.jsonl"
    original, runs = engine.Stage.run, []

    def stopped(stage, point):
        if len(runs) == done:
            raise KeyboardInterrupt
        runs.append(point)
        return original(stage, point)

    with monkeypatch.context() as patch:
        patch.setattr(engine.Stage, "run", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(results)
    assert len(read(results)) == 1 + done
    learnt.clear()
    run(results)
    tasks = [task for task, _ in learnt]
    assert tasks.count("articles") == (2 if done < FIRST_SEED else 1)  # for seeds that go on
    assert tasks.count("patients") == RUNS - done - 1  # all that is left, but tier 1 of seed 1
    assert untimed(read(results)[1:]) == untimed(read(whole)[1:])  # to the last digit
    assert grid_table(whole) in capsys.readouterr().out


def test_a_finished_grid_only_prints_its_table_wherever_its_file_lies(results, learnt, capsys):
    before = results.read_bytes()
    run(results)
    assert learnt == []
    assert results.read_bytes() == before
    assert grid_table(results) in capsys.readouterr().out


def test_other_settings_are_refused_by_name(results, learnt):
    before = results.read_bytes()
    with pytest.raises(ConsolidationError, match="made with other LearningArguments; repeat"):
        run(results, learning=replace(LEARNING, epochs=2))
    with pytest.raises(ConsolidationError, match="made with other old_train_examples; repeat"):
        run(results, old_train_examples=32)
    assert learnt == []
    assert results.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]\n", "{}\n", '{"settings": {}}\n{"point": 1}\n'],
    ids=str,
)
def test_a_file_that_is_no_grid_is_refused_and_left_alone(content, tmp_path):
    results = tmp_path / "results.jsonl"
    results.write_text(content)
    with pytest.raises(ConsolidationError, match="does not hold the runs of an experiment"):
        run(results)
    assert results.read_text() == content


def test_a_place_where_no_file_can_be_is_refused(tmp_path, learnt):
    with pytest.raises(ConsolidationError, match="does not hold the runs of an experiment"):
        run(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is not a folder"):
        run(tmp_path / "file" / "folder" / "results.jsonl")
    assert learnt == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ["none"]}, "unknown method 'none'; choose from l2, ewc"),
        ({"methods": ["l2", "l2"]}, "methods are .* none twice"),
        ({"methods": []}, "methods are .* at least one"),
        ({"seeds": [3, 3]}, "seeds are .* none twice"),
        ({"seeds": []}, "seeds are .* at least one"),
        ({"dampings": []}, "dampings are .* at least one"),
        ({"dampings": [0.1, -1.0]}, "dampings: -1.0 is not a number ≥ 0"),
        ({"dampings": [float("nan")]}, "dampings: nan is not a number ≥ 0"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(changes, message, tmp_path):
    with pytest.raises(ConsolidationError, match=message):
        arguments(tmp_path / "results.jsonl", **changes)


@pytest.mark.parametrize("own", [{"strengths": [1.0]}, {"damping": 0.5}, {"seed": 3}])
def test_what_the_grid_varies_cannot_be_set(own, tmp_path, learnt):
    with pytest.raises(
        ConsolidationError, match=f"^the experiment sets {next(iter(own))} itself; use"
    ):
        run(tmp_path / "grid.jsonl", replace(LEARNING, **own))
    assert not learnt


def test_no_file_is_left_where_the_first_run_fails(tmp_path):
    with pytest.raises(DataError, match=r"'train'\] is 0; give at least 1"):
        run(tmp_path / "new" / "results.jsonl", old_train_examples=0)
    assert list(tmp_path.iterdir()) == []


def test_an_old_task_that_was_not_learnt_is_refused_before_the_runs(tmp_path, monkeypatch, learnt):
    monkeypatch.setattr(engine.Learned, "accuracy", lambda *_: 0.0)
    with pytest.raises(ConsolidationError, match="with seed 0 tier 1 ranks no test example of art"):
        run(tmp_path / "results.jsonl")
    assert [task for task, _ in learnt] == ["articles"]


def record(seed: int, method: str, multiple: float | None, old: float, new: float) -> dict:
    """A run whose test accuracies are 0.1 below its validation accuracies."""
    point = {"seed": seed, "tasks": ["articles", "patients"], "method": method, "strengths": []}
    if method == "individual":
        point["tasks"] = ["articles"]
    if multiple is not None:
        point["multiple"] = multiple
    found = dict(zip(point["tasks"], (old, new), strict=False))
    test = {task: accuracy - 0.1 for task, accuracy in found.items()}
    return {"point": point, "validation": found, "test": test}


RECORDS = [
    record(0, "individual", None, 0.9, 0.0),
    record(0, "none", None, 0.5, 0.7),
    record(0, "l2", 0.001, 0.5, 0.71),
    record(0, "l2", 0.1, 0.9, 0.2),
    record(0, "ewc:0.1", 1.0, 0.6, 0.70),
    record(0, "ewc:0.1", 10.0, 0.7, 0.69),
    record(0, "ewc:0.1", 100.0, 0.8, 0.6),
    record(1, "individual", None, 0.9, 0.0),
    record(1, "none", None, 0.4, 0.8),
    record(1, "l2", 0.001, 0.5, 0.7),
    record(1, "ewc:0.1", 10.0, 0.8, 0.75),
]


def write(path: Path, records: list[dict]) -> Path:
    lines = [{"settings": {"tasks": ["articles", "patients"], "old_train_examples": None}}]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, *records]))
    return path


def test_table_has_means_and_deviations_over_seeds_of_the_chosen_strengths(tmp_path):
    table = grid_table(write(tmp_path / "results.jsonl", RECORDS))
    header, rule, *rows = table.split("\n\n")[0].splitlines()
    assert "articles before" in header
    assert {line.count("|") for line in (header, rule, *rows)} == {9}
    # Old task before 80 %; none keeps 40 and 30 % (changes −50 and −62.5 %, mean −56.25 %);
    # ewc at 10 keeps 60 and 70 % (−25 and −12.5 %, mean −18.75 %: a third of −56.25 %).
    assert rows == [
        "| none |  |  | 80.0 ± 0.0 | 35.0 ± 7.1 | -56.2 ± 8.8 |  | 65.0 ± 7.1 |",
        "| l2 |  | λ = 0.001 | 80.0 ± 0.0 | 40.0 ± 0.0 | -50.0 ± 0.0 | 11 | 60.5 ± 0.7 |",
        "| ewc | 0.1 | 10 | 80.0 ± 0.0 | 65.0 ± 7.1 | -18.8 ± 8.8 | 67 | 62.0 ± 4.2 |",
    ]


def test_second_table_has_every_strength_of_the_first_seed(tmp_path):
    table = grid_table(write(tmp_path / "results.jsonl", RECORDS)).split("\n\n")[2]
    # Before 0.8, by none 0.4: at 0.5, 0.6 and 0.7 a quarter, a half and three quarters are kept.
    assert table.splitlines()[2:] == [
        "| l2 |  | 0.001: 0 / +1.0, 0.1: 100 / -50.0 |",
        "| ewc | 0.1 | 1: 25 / +0.0, 10: 50 / -1.0, 100: 75 / -10.0 |",
    ]


def test_table_of_an_unfinished_grid_says_which_run_is_missing(tmp_path):
    results = write(tmp_path / "results.jsonl", RECORDS[:-1])
    with pytest.raises(ConsolidationError, match=r"no run of ewc:0\.1 with seed 1; run the"):
        grid_table(results)
    with pytest.raises(ConsolidationError, match="has no run of none"):
        grid_table(write(results, RECORDS[:1]))
