"""Tiers 1 to 3 over all permutations: every run once, from the right model, on where it was."""

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_kfc.curvature import CurvatureArguments
from hf_kfc.errors import ConsolidationError
from laboratory import (
    DataArguments,
    LearningArguments,
    PermutationArguments,
    Permutations,
    RankerArguments,
    engine,
)
from laboratory.ledger import read_ledger
from laboratory.points import ANY_CHOICE, Choices, Point

TASKS = ("articles", "patients", "notes")
RANKER = RankerArguments(hidden_size=8, vocab_size=500)
DATA = DataArguments(train_examples=48, validation_examples=32, test_examples=32)
LEARNING = LearningArguments(epochs=1, learning_rate=0.01, batch_size=8)
METHODS = ["none", "ewc", "average", "scores"]
TIER3 = ["none", "ewc", "scores"]


def experiment(
    results: Path, learning: LearningArguments = LEARNING, **changes: Any
) -> Permutations:
    values: dict[str, Any] = {
        "tasks": list(TASKS),
        "methods": METHODS,
        "tier3_methods": TIER3,
        "search": ["ewc=1,100"],
        "update_examples": 32,
        "seeds": [0, 1],
    }
    arguments = PermutationArguments(results=str(results), **(values | changes))
    return Permutations(arguments, RANKER, DATA, learning, CurvatureArguments())


def run(results: Path, learning: LearningArguments = LEARNING, **changes: Any) -> None:
    engine.run(experiment(results, learning, **changes))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, examples_cache) -> Path:
    """The results of an experiment that was never stopped."""
    results = tmp_path_factory.mktemp("permutations") / "results.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", examples_cache)
        run(results)
    return results


def records_of(path: Path) -> dict[Point, dict[str, Any]]:
    return read_ledger(path)[1]


def test_every_run_is_there_once(whole):
    points = list(records_of(whole))
    counted = [len(list(experiment(whole).points(seed, ANY_CHOICE))) for seed in (0, 1)]
    assert sum(counted) == len(points)  # what the bar counts
    assert len(points) == len(whole.read_text("utf-8").splitlines()) - 1
    for seed in (0, 1):
        own = [point for point in points if point.seed == seed]
        alone = {(p.tasks, p.method) for p in own if len(p.tasks) == 1}
        kinds = ("individual", "individual:0.1", "individual:update")
        assert alone == {((task,), kind) for task in TASKS for kind in kinds}
        assert sum(point.method == "combined" for point in own) == 4
        for length, methods in ((2, METHODS), (3, TIER3)):
            for tasks in itertools.permutations(TASKS, length):
                found = [p.method for p in own if p.tasks == tasks and p.method != "combined"]
                ewc = 1 if seed else length  # two strengths at tier 2, three at tier 3
                assert sorted(found) == sorted([*methods, *["ewc"] * (ewc - 1)])


def test_every_task_of_a_chain_is_measured(whole):
    for point, record in records_of(whole).items():
        for split in ("validation", "test"):
            assert set(record[split]) == set(point.tasks)
            assert all(0 <= accuracy <= 1 for accuracy in record[split].values())


def test_later_seeds_take_the_strengths_of_the_first(whole):
    records = records_of(whole)
    choices = Choices(records, 0)
    for point in records:
        if point.seed == 1 and point.strengths:
            assert point.strengths == choices.chosen(point.tasks, point.method).strengths


@pytest.mark.parametrize("kept", [30, 60])
def test_a_stopped_experiment_goes_on_to_the_same_results(whole, tmp_path, kept):
    lines = whole.read_text("utf-8").splitlines(keepends=True)
    results = tmp_path / "results.jsonl"
    results.write_text("".join(lines[: kept + 1]) + lines[kept + 1][:10])
    run(results, seeds=[0])
    wanted = {p: r["test"] for p, r in records_of(whole).items() if p.seed == 0}
    assert {p: r["test"] for p, r in records_of(results).items()} == wanted


def test_further_methods_are_taken_into_the_same_file(whole, tmp_path):
    results = tmp_path / "results.jsonl"
    results.write_bytes(whole.read_bytes())
    more = ["lora", "rehearsal:0.25+l2"]
    changes = {"search": ["ewc=1,100", "rehearsal:0.25+l2=0.01"], "seeds": [0]}
    run(results, methods=[*METHODS, *more], **changes)
    new = set(records_of(results)) - set(records_of(whole))
    assert sorted(point.method for point in new) == [name for name in more for _ in range(6)]
    with pytest.raises(ConsolidationError, match="made with other LearningArguments"):
        run(results, replace(LEARNING, epochs=2))


def test_each_tier_goes_on_from_the_methods_own_model_with_its_priors(tmp_path, monkeypatch):
    calls = []
    original = engine.learn

    def learn(start, task, collator, args, priors=(), **more):
        learned = original(start, task, collator, args, priors, **more)
        calls.append((_digest(start), task, priors, args.strengths, more.get("kept"), learned))
        return learned

    monkeypatch.setattr(engine, "learn", learn)
    run(
        tmp_path / "results.jsonl",
        tasks=["articles", "patients", "notes"],
        methods=["none", "rehearsal:0.25+ewc"],
        tier3_methods=["rehearsal:0.25+ewc"],
        search=["rehearsal:0.25+ewc=7"],
        seeds=[0],
    )
    learned_by = {_digest(learned.model): task.name for _, task, *_, learned in calls}
    tier3 = [call for call in calls if len(call[2]) == 2]
    assert len(tier3) == 6  # a method of one strength keeps it
    kept_at_tier2 = {priors[0].task: kept for _, _, priors, _, kept, _ in calls if len(priors) == 1}
    for start, task, priors, strengths, kept, _ in tier3:
        assert learned_by[start] == priors[1].task  # from the model that learnt the second task
        assert len({priors[0].task, priors[1].task, task.name}) == 3
        assert strengths == [7.0, 7.0]
        assert len(task.train) == 32  # an update
        assert priors[0].provenance.num_examples == 48  # tier 1 learns all there is
        assert priors[1].provenance.num_examples == 32
        assert len(kept) == 48 // 4 + 32 // 4
        assert kept[:12] == kept_at_tier2[priors[0].task]  # the rest was deleted after tier 1


def test_scores_are_of_models_that_learnt_what_the_chain_learns_of_each_task(tmp_path, monkeypatch):
    sizes, averaged = {}, []
    original, average = engine.learn, engine.ScoreAverage

    def learn(start, task, *args, **more):
        learned = original(start, task, *args, **more)
        sizes[_digest(learned.model)] = (task.name, len(task.train))
        return learned

    def score_average(models):
        averaged.append([sizes[_digest(model)] for model in models])
        return average(models)

    monkeypatch.setattr(engine, "learn", learn)
    monkeypatch.setattr(engine, "ScoreAverage", score_average)
    run(
        tmp_path / "results.jsonl",
        tasks=["articles", "patients"],
        methods=["scores"],
        tier3_methods=[],
        search=[],
        seeds=[0],
    )
    assert averaged == [
        [("articles", 48), ("patients", 32)],
        [("patients", 48), ("articles", 32)],
    ]


def _digest(model: torch.nn.Module) -> str:
    return json.dumps([float(p.detach().double().sum()) for p in model.parameters()])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["articles"]}, "tasks are .*; give at least two"),
        ({"tasks": ["articles", "articles"]}, "none twice"),
        ({"seeds": []}, "seeds are"),
        ({"seeds": [1, 1]}, "none twice"),
        ({"methods": ["kfk"]}, "unknown method 'kfk'"),
        ({"tier3_methods": ["kfc"]}, "tier3_methods names kfc, which methods lacks"),
        ({"search": ["ewc"]}, "'ewc' is not METHOD=λ,λ"),
        ({"search": ["ewc=0,1"]}, "'ewc=0,1' is not METHOD=λ,λ"),
        ({"search": ["lora=1"]}, "'lora' is none of the methods with a penalty"),
        ({"update_examples": 0}, "update_examples is 0"),
    ],
)
def test_bad_arguments_are_refused_before_any_run(changes, message, tmp_path):
    with pytest.raises(ConsolidationError, match=message):
        run(tmp_path / "results.jsonl", **changes)
    assert not list(tmp_path.iterdir())


def test_strength_and_seed_are_the_experiments_to_set(tmp_path):
    for own in ({"strengths": [1.0]}, {"seed": 3}):
        with pytest.raises(ConsolidationError, match="the experiment sets"):
            run(tmp_path / "results.jsonl", replace(LEARNING, **own))
