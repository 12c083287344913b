import json
import re
import sys
from collections import Counter
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from hf_kfc.curvature import CurvatureArguments
from hf_kfc.errors import ConsolidationError, DataError
from hf_kfc.ranking.tasks import prepare_task
from laboratory import (
    DataArguments,
    LearningArguments,
    RankerArguments,
    Stream,
    StreamArguments,
    __main__,
    engine,
    stream,
)
from laboratory import periods as periods_module
from laboratory.averaging import average_parameters
from laboratory.periods import prepare_periods, split_periods
from laboratory.points import ANY_CHOICE, Choices, Point, periods_so_far
from laboratory.report import StreamRuns, stream_table
from laboratory.report.stream_figures import save_stream_figures

PERIODS, BASE = 4, 2
MULTIPLES = {"identity": (0.001, 0.1), "diagonal": (10.0, 100.0)}
METHODS = ["l2", "rehearsal:0.5+ewc", "average", "scores"]
RANKER = RankerArguments(hidden_size=8, vocab_size=500)
# As many of each split, so that documents of all reach to the last period.
DATA = DataArguments(train_examples=64, validation_examples=64, test_examples=64)
LEARNING = LearningArguments(epochs=1, learning_rate=0.01)
REFERENCES = 1 + 2  # the base model, and one retrained for each update
FIRST_SEED = REFERENCES + 3 * 2 + 2 * 3  # and none, average, scores; and two that try strengths
FROZEN, RETRAINED = "individual", "combined"


def at(seed: int, period: int, method: str, multiple: float | None = None) -> Point:
    """The run that has learnt a period."""
    return Point(seed, periods_so_far(BASE, period), method, (), multiple)


def period_of(point: Point) -> int:
    return BASE + len(point.tasks) - 1


def arguments(results: Path, **changes: Any) -> StreamArguments:
    values = {"periods": PERIODS, "base_periods": BASE, "methods": METHODS, "seeds": [0, 1]}
    return StreamArguments(results=str(results), task="articles", **(values | changes))


def experiment(results: Path, learning: LearningArguments = LEARNING, **changes: Any) -> Stream:
    return Stream(arguments(results, **changes), RANKER, DATA, learning, CurvatureArguments())


def run(results: Path, learning: LearningArguments = LEARNING, **changes: Any) -> None:
    engine.run(experiment(results, learning, **changes))


def read(results: Path) -> dict[Point, dict[str, Any]]:
    """The records by their points, without the times that they took."""
    records = map(json.loads, results.read_text("utf-8").splitlines()[1:])
    return {
        Point(p["seed"], tuple(p["tasks"]), p["method"], (), p.get("multiple")): r
        for r in records
        if r.pop("seconds") >= 0 and (p := r.pop("point"))
    }


@pytest.fixture(autouse=True)
def few_strengths(monkeypatch):
    monkeypatch.setattr(stream, "_MULTIPLES", MULTIPLES)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, examples_cache) -> Path:
    """The results of a stream that was never stopped."""
    results = tmp_path_factory.mktemp("stream") / "new" / "stream.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "_MULTIPLES", MULTIPLES)
        patch.setattr("datasets.config.HF_DATASETS_CACHE", examples_cache)
        run(results)
    return results


@pytest.fixture(scope="module")
def articles(examples_cache) -> datasets.DatasetDict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", examples_cache)
        return prepare_task("articles", seed=0, **DATA.config).as_dataset()


@pytest.fixture
def stage(tmp_path) -> engine.Stage:
    return engine.Stage(experiment(tmp_path / "results.jsonl"), seed=0)


def test_periods_are_whole_documents_in_order_and_cover_all(articles):
    periods = split_periods("articles", articles, PERIODS)
    ends = []
    for split in articles:
        ids = [[row["id"] for row in period[split]] for period in periods]
        assert Counter(chain.from_iterable(ids)) == Counter(articles[split]["id"])
        numbers = [
            sorted({int(document.rsplit("-", 1)[1]) for document in period[split]["document"]})
            for period in periods
        ]
        assert all(a[-1] < b[0] for a, b in pairwise(numbers))
        ends.append([(own[0], own[-1]) for own in numbers])
    sizes = [len(period["train"]) for period in periods]
    assert max(sizes) - min(sizes) <= 8  # a document has at most five mentions
    # The same boundaries: what comes last in a period of one split precedes the next of another.
    assert all(
        a[period][1] < b[period + 1][0] for a in ends for b in ends for period in range(PERIODS - 1)
    )


def rows(**documents: list[str]) -> datasets.DatasetDict:
    return datasets.DatasetDict(
        {split: datasets.Dataset.from_dict({"document": ids}) for split, ids in documents.items()}
    )


def test_identifiers_of_digits_are_ordered_as_numbers_and_later_ones_are_of_the_last_period():
    splits = rows(
        train=["10", "9", "9", "100", "11", "8"], validation=["10", "1", "999"], test=["9", "11"]
    )
    first, last = split_periods("numbers", splits, 2)
    assert first["train"]["document"] == ["9", "9", "8"]
    assert last["train"]["document"] == ["10", "100", "11"]
    assert [period["validation"]["document"] for period in (first, last)] == [["1"], ["10", "999"]]
    assert [period["test"]["document"] for period in (first, last)] == [["9"], ["11"]]


def test_a_period_without_examples_is_refused():
    splits = rows(train=["1", "2", "3"], validation=["1", "3"], test=["1", "3"])
    with pytest.raises(
        DataError, match="'x': period 2 of 3 has no validation and no test examples; give more"
    ):
        split_periods("x", splits, 3)
    with pytest.raises(DataError, match="period 2 of 4 has no train and no validation and no"):
        split_periods("x", splits, 4)


def test_a_new_ranker_knows_the_words_of_the_base_periods_alone(tmp_path, articles, monkeypatch):
    known: list[str] = []
    original = periods_module.new_ranker

    def new_ranker(args, tasks, seed):
        known.extend(row["id"] for task in tasks for row in task["train"])
        return original(args, tasks, seed)

    monkeypatch.setattr(periods_module, "new_ranker", new_ranker)
    _, _, encoded = prepare_periods(
        "articles", PERIODS, BASE, RANKER, DATA, CurvatureArguments(), seed=0
    )
    base = split_periods("articles", articles, PERIODS)[:BASE]
    assert known == [row["id"] for period in base for row in period["train"]]
    assert [period.name for period in encoded] == [f"articles, period {n}" for n in (1, 2, 3, 4)]


def test_every_point_is_run_once(whole):
    lines = whole.read_text("utf-8").splitlines()
    header = json.loads(lines[0])
    assert header["settings"]["periods"] == PERIODS
    points = list(read(whole))
    assert len(points) == len(lines) - 1
    counted = [len(list(experiment(whole).points(seed, ANY_CHOICE))) for seed in (0, 1)]
    assert counted == [FIRST_SEED, FIRST_SEED - 2]
    assert [p for p in points if p.method in (FROZEN, RETRAINED, "none")] == [
        at(seed, period, method)
        for seed in (0, 1)
        for method, periods in ((FROZEN, (2,)), (RETRAINED, (3, 4)), ("none", (3, 4)))
        for period in periods
    ]
    for method, tried in (("l2", MULTIPLES["identity"]), (METHODS[1], MULTIPLES["diagonal"])):
        own = [point for point in points if point.method == method]
        chosen = own[2].multiple
        assert own == [
            *(at(0, 3, method, multiple) for multiple in tried),
            *(at(seed, period, method, chosen) for seed, period in ((0, 4), (1, 3), (1, 4))),
        ]
    assert [point.method for point in points[FIRST_SEED - 4 : FIRST_SEED]] == [
        *("average", "average", "scores", "scores")
    ]


def test_a_point_has_accuracies_of_all_periods_and_its_examples(whole, articles):
    periods = split_periods("articles", articles, PERIODS)
    sizes = {
        split: {str(n): len(period[split]) for n, period in enumerate(periods, 1)}
        for split in articles
    }
    for point, record in read(whole).items():
        for split in ("test", "validation"):
            assert list(record[split]) == ["1", "2", "3", "4"]  # the future ones too
            assert all(0 <= value <= 1 for value in record[split].values())
        if point.seed == 0:
            assert record["examples"] == sizes


def test_strengths_are_multiples_of_the_bayesian_value_of_each_prior(whole):
    for point, record in read(whole).items():
        sizes = list(record["examples"]["train"].values())
        period = period_of(point)
        learnt = [sum(sizes[:BASE]), *sizes[BASE : period - 1]]  # before this period
        expected = {
            "l2": [point.multiple for _ in learnt],
            METHODS[1]: [(point.multiple or 0) * old / (2 * sizes[period - 1]) for old in learnt],
        }
        assert record["strengths"] == pytest.approx(expected.get(point.method, []))


def test_the_multiple_is_chosen_on_the_development_splits_of_the_first_update(tmp_path):
    sizes = {"validation": dict(zip("1234", (30, 10, 20, 20), strict=True))}

    def record(old: list[float], new: float) -> dict[str, Any]:
        return {
            "validation": dict(zip("1234", (*old, new, 0.0), strict=True)),
            "examples": sizes,
        }

    records = {
        at(0, 3, "none"): record([0.4, 0.4], 0.8),
        at(0, 3, "l2", 0.001): record([0.5, 0.9], 0.8),  # 24 of 40
        at(0, 3, "l2", 0.01): record([0.6, 0.8], 0.795),  # 26 of 40
        at(0, 3, "l2", 0.1): record([1.0, 1.0], 0.7),  # loses the new period
        at(0, 4, "l2", 0.001): record([1.0, 1.0], 1.0),  # another update
    }
    own = experiment(tmp_path / "results.jsonl")
    choices = Choices(records, 0, own.old_accuracy)
    assert choices.chosen(periods_so_far(BASE, 3), "l2") == at(0, 3, "l2", 0.01)


def test_each_update_goes_on_from_its_own_model_with_a_prior_of_each_earlier_one(
    stage, monkeypatch
):
    learnt: list[dict[str, Any]] = []
    original = engine.learn

    def learn(start, task, collator, args, priors=(), **more):
        learned = original(start, task, collator, args, priors, **more)
        told = {"start": start, "task": task, "strengths": args.strengths, "priors": priors}
        learnt.append({**told, "model": learned.model, "kept": more.get("kept")})
        return learned

    monkeypatch.setattr(engine, "learn", learn)
    point = at(0, 4, METHODS[1], 10.0)
    periods = list(stage.material.measured.values())
    strengths = stage.run(point)["strengths"]
    base, third, fourth = learnt  # what the last builds on is learnt first
    assert [len(update["task"].train) for update in learnt] == [
        sum(len(period.train) for period in periods[:BASE]),
        *(len(period.train) for period in periods[BASE:]),
    ]
    assert third["start"] is base["model"]
    assert fourth["start"] is third["model"]
    assert [len(update["priors"]) for update in learnt] == [0, 1, 2]
    assert fourth["strengths"] == strengths
    for prior, update in zip(fourth["priors"], (base, third), strict=True):
        assert prior.task == update["task"].name
        parameters = dict(update["model"].named_parameters())
        for name, anchor in prior.anchor.items():
            assert torch.equal(anchor, parameters[name])
    # Half of each earlier period, the same half at every update.
    assert len(fourth["kept"]) == sum(round(len(p.train) / 2) for p in periods[:3])
    assert fourth["kept"][: len(third["kept"])] == third["kept"]
    learnt.clear()
    stage.run(point)
    assert learnt == []


def test_averages_are_of_the_base_model_and_one_of_each_later_period(stage):
    averaged: list[Any] = []
    original = engine.ScoreAverage
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            engine, "ScoreAverage", lambda models: averaged.append(models) or original(models)
        )
        stage.run(at(0, 4, "scores"))
    (scores,) = averaged
    alone = [stage.model(Point(0, (task,), "individual")) for task in ("1-2", "3", "4")]
    assert all(a is b for a, b in zip(scores, alone, strict=True))
    stage.run(at(0, 3, "average"))
    third = stage.model(at(0, 3, "average"))
    newest = stage.model(at(0, 3, "none"))
    expected = average_parameters(alone[0], newest, 1 / 2)
    for name, value in third.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_of_other_methods_the_models_do_not_stay_in_memory(stage):
    for method in ("none", "average"):
        stage.run(at(0, 3, method))
    assert set(stage._models) == {at(0, 2, FROZEN), at(0, 3, "average")}


def test_measuring_a_model_changes_neither_its_prior_nor_what_is_learnt_next(tmp_path):
    """In mixed precision it wraps the model's forward, through which a prior is estimated."""
    learning, method = replace(LEARNING, bf16=True), "average+kfc"
    own = experiment(tmp_path / "results.jsonl", learning, methods=[method])
    whole, stopped = engine.Stage(own, seed=0), engine.Stage(own, seed=0)
    whole.run(at(0, 3, method, 10.0))
    expected = whole.run(at(0, 4, method, 10.0))
    found = stopped.run(at(0, 4, method, 10.0))  # what it goes on from is learnt, not measured
    assert found["test"] == expected["test"]
    fingerprints = [
        {key: prior.fingerprint for key, prior in stage._priors.items()}
        for stage in (whole, stopped)
    ]
    assert len(fingerprints[0]) == 2
    assert fingerprints[0] == fingerprints[1]


@pytest.mark.parametrize(
    ("done", "seeds"),
    # Before the last update of a chain with priors: of the first seed, and of the second.
    [(REFERENCES + 2 + 3 + 2, [0]), (FIRST_SEED + REFERENCES + 2 + 2 + 1, [0, 1])],
    ids=str,
)
def test_a_stopped_stream_goes_on_where_it_was(done, seeds, whole, tmp_path, monkeypatch):
    results = tmp_path / "stream.jsonl"
    lines = whole.read_bytes().splitlines(keepends=True)
    results.write_bytes(b"".join(lines[: 1 + done]) + lines[1 + done][:20])
    points: list[Point] = []
    original = engine.Stage.run

    def counted(stage, point):
        points.append(point)
        return original(stage, point)

    monkeypatch.setattr(engine.Stage, "run", counted)
    run(results, seeds=seeds)
    expected = [(p, r) for p, r in read(whole).items() if p.seed in seeds]
    assert list(read(results).items()) == expected  # to the last digit
    assert points == [point for point, _ in expected][done:]
    assert points[0] == at(seeds[-1], PERIODS, METHODS[1], points[0].multiple)


def test_a_finished_stream_is_left_alone_and_takes_further_methods(whole, tmp_path, monkeypatch):
    results = tmp_path / "stream.jsonl"
    results.write_bytes(whole.read_bytes())
    monkeypatch.setattr(engine.Stage, "run", lambda _, point: {"point of": point.method})
    run(results)
    assert results.read_bytes() == whole.read_bytes()
    run(results, methods=["lora"])
    more = results.read_text("utf-8").splitlines()[len(whole.read_text("utf-8").splitlines()) :]
    assert [json.loads(line)["point of"] for line in more] == ["lora"] * 4


def test_other_settings_are_refused_by_name(whole):
    before = whole.read_bytes()
    with pytest.raises(ConsolidationError, match="made with other periods; repeat"):
        run(whole, periods=5)
    with pytest.raises(ConsolidationError, match="made with other LearningArguments; repeat"):
        run(whole, learning=replace(LEARNING, epochs=2))
    with pytest.raises(ConsolidationError, match="made with other first of seeds; repeat"):
        run(whole, seeds=[1])
    assert whole.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"periods": 2}, "base_periods is 2 of 2 periods; give at least 1 and leave"),
        ({"base_periods": 0}, "base_periods is 0 of 4 periods; give at least 1"),
        ({"methods": ["nothing"]}, "unknown method 'nothing'"),
        ({"methods": ["l2", "l2"]}, "methods are .* none twice"),
        ({"methods": []}, "methods are .* at least one"),
        ({"methods": ["ewc+scores"]}, "'ewc.scores' joins others to scores.*by itself"),
        ({"seeds": [3, 3]}, "seeds are .* none twice"),
        ({"seeds": []}, "seeds are .* at least one"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(changes, message, tmp_path):
    with pytest.raises(ConsolidationError, match=message):
        arguments(tmp_path / "results.jsonl", **changes)


def test_none_is_always_run_and_goes_first(tmp_path):
    for methods in (["l2"], ["l2", "none"]):
        assert arguments(tmp_path / "r.jsonl", methods=methods).methods == ["none", "l2"]
    assert StreamArguments(results="r.jsonl").methods[0] == "none"


@pytest.mark.parametrize("own", [{"strengths": [1.0]}, {"seed": 3}], ids=str)
def test_what_the_stream_varies_cannot_be_set(own, tmp_path):
    with pytest.raises(ConsolidationError, match=f"^the experiment sets {next(iter(own))} itself"):
        run(tmp_path / "stream.jsonl", replace(LEARNING, **own))


def test_the_command_goes_on_from_the_same_file_of_which_table_and_pictures_are_made(
    whole, tmp_path, monkeypatch
):
    before = whole.read_bytes()
    told = "--task articles --periods 4 --base_periods 2 --methods l2 --seeds 0 1 --epochs 1 "
    told += "--hidden_size 8 --vocab_size 500 --learning_rate 0.01 --train_examples 64 "
    told += "--validation_examples 64 --test_examples 64"
    words = ["laboratory", "stream", "--results", str(whole), *told.split()]
    monkeypatch.setattr(sys, "argv", words)
    __main__.main()
    assert whole.read_bytes() == before
    table, _ = stream_table(StreamRuns.read(whole))
    (own,) = (" | ".join(row) for row in table.rows if row[0].startswith("rehearsal"))
    assert re.match(r"rehearsal:0.5\+ewc \| 100? \| [\d.]+ ± [\d.]+ \|", own)
    pictures = save_stream_figures(StreamRuns.read(whole), "stream", tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 * len(pictures) == 4
