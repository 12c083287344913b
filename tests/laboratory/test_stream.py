import json
import re
import runpy
import sys
import warnings
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
from laboratory import DataArguments, LearningArguments, RankerArguments, stream
from laboratory import periods as periods_module
from laboratory.averaging import average_parameters
from laboratory.periods import prepare_periods, split_periods
from laboratory.stream import (
    StreamArguments,
    StreamPoint,
    run_stream,
)
from laboratory.stream_report import _spread_out, save_stream_figures, stream_table

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "stream.py"
PERIODS, BASE = 4, 2
MULTIPLES = {"identity": (0.001, 0.1), "diagonal": (10.0, 100.0)}
METHODS = ["l2", "rehearsal:0.5+ewc", "average", "scores"]
RANKER = RankerArguments(hidden_size=8, vocab_size=500)
# As many of each split, so that documents of all reach to the last period.
DATA = DataArguments(train_examples=64, validation_examples=64, test_examples=64)
LEARNING = LearningArguments(epochs=1, learning_rate=0.01)
REFERENCES = 3 + 2  # frozen from the base model on, retrained for each update
FIRST_SEED = REFERENCES + 3 * 2 + 2 * 3  # and none, average, scores; and two that try strengths


def arguments(results: Path, **changes: Any) -> StreamArguments:
    values = {"periods": PERIODS, "base_periods": BASE, "methods": METHODS, "seeds": [0, 1]}
    return StreamArguments(str(results), "articles", **(values | changes))


def run(results: Path, learning: LearningArguments = LEARNING, **changes: Any) -> None:
    run_stream(arguments(results, **changes), RANKER, DATA, learning, CurvatureArguments())


def read(results: Path) -> dict[StreamPoint, dict[str, Any]]:
    """The records by their points, without the times that they took."""
    records = map(json.loads, results.read_text("utf-8").splitlines()[1:])
    return {StreamPoint(**r.pop("point")): r for r in records if r.pop("seconds") >= 0}


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


def made_stage(results: Path, **changes: Any) -> stream._Stage:
    return stream._Stage(
        arguments(results, **changes), RANKER, DATA, LEARNING, CurvatureArguments()
    )


@pytest.fixture
def stage(tmp_path) -> stream._Stage:
    return made_stage(tmp_path / "results.jsonl")


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
    points = [tuple(json.loads(line)["point"].values()) for line in lines[1:]]
    assert len(points) == len(set(points))
    assert [point for point in points if point[2] in ("frozen", "retrained", "none")] == [
        (seed, period, method, None)
        for seed in (0, 1)
        for method, periods in (("frozen", (2, 3, 4)), ("retrained", (3, 4)), ("none", (3, 4)))
        for period in periods
    ]
    for method, tried in (("l2", MULTIPLES["identity"]), (METHODS[1], MULTIPLES["diagonal"])):
        own = [
            (seed, period, multiple) for seed, period, name, multiple in points if name == method
        ]
        chosen = own[2][2]
        assert own == [
            *((0, 3, multiple) for multiple in tried),
            *((seed, period, chosen) for seed, period in ((0, 4), (1, 3), (1, 4))),
        ]
    assert [point[2] for point in points[FIRST_SEED - 4 : FIRST_SEED]] == [
        *("average", "average", "scores", "scores")
    ]


def test_a_point_has_accuracies_of_all_periods_and_its_examples(whole, articles):
    periods = split_periods("articles", articles, PERIODS)
    sizes = {split: [len(period[split]) for period in periods] for split in articles}
    for point, record in read(whole).items():
        for split in ("test", "validation"):
            assert len(record[split]) == PERIODS
            assert all(0 <= value <= 1 for value in record[split])
        if point.seed == 0:
            assert record["examples"] == sizes


def test_strengths_are_multiples_of_the_bayesian_value_of_each_prior(whole):
    for point, record in read(whole).items():
        sizes = record["examples"]["train"]
        learnt = [sum(sizes[:BASE]), *sizes[BASE : point.period - 1]]  # before this period
        expected = {
            "l2": [point.multiple for _ in learnt],
            METHODS[1]: [
                (point.multiple or 0) * old / (2 * sizes[point.period - 1]) for old in learnt
            ],
        }
        assert record["strengths"] == pytest.approx(expected.get(point.method, []))


def test_the_multiple_is_chosen_on_the_development_splits_of_the_first_update(tmp_path):
    sizes = {"validation": [30, 10, 20, 20]}

    def record(old: list[float], new: float) -> dict[str, Any]:
        return {"validation": [*old, new, 0.0], "examples": sizes}

    first = (0, 3)
    records = {
        StreamPoint(*first, "none"): record([0.4, 0.4], 0.8),
        StreamPoint(*first, "l2", 0.001): record([0.5, 0.9], 0.8),  # 24 of 40
        StreamPoint(*first, "l2", 0.01): record([0.6, 0.8], 0.795),  # 26 of 40
        StreamPoint(*first, "l2", 0.1): record([1.0, 1.0], 0.7),  # loses the new period
        StreamPoint(0, 4, "l2", 0.001): record([1.0, 1.0], 1.0),  # another update
    }
    assert stream._chosen(records, arguments(tmp_path / "results.jsonl"), "l2") == 0.01


def test_frozen_never_changes(whole):
    for seed in (0, 1):
        own = [r for p, r in read(whole).items() if (p.seed, p.method) == (seed, "frozen")]
        assert len(own) == PERIODS - BASE + 1
        assert all(record == own[0] for record in own)


def test_each_update_goes_on_from_its_own_model_with_a_prior_of_each_earlier_one(
    stage, monkeypatch
):
    learnt: list[dict[str, Any]] = []
    original = stream.learn

    def learn(start, task, collator, args, priors=(), **more):
        learned = original(start, task, collator, args, priors, **more)
        told = {"start": start, "task": task, "strengths": args.strengths, "priors": priors}
        learnt.append({**told, "model": learned.model, "kept": more.get("kept")})
        return learned

    monkeypatch.setattr(stream, "learn", learn)
    point = StreamPoint(0, 4, METHODS[1], 10.0)
    strengths = stage.run(point)["strengths"]
    base, third, fourth = learnt  # what the last builds on is learnt first
    assert [len(update["task"].train) for update in learnt] == [
        sum(len(period.train) for period in stage._periods[:BASE]),
        *(len(period.train) for period in stage._periods[BASE:]),
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
    assert len(fourth["kept"]) == sum(round(len(p.train) / 2) for p in stage._periods[:3])
    assert fourth["kept"][: len(third["kept"])] == third["kept"]
    learnt.clear()
    stage.run(point)
    assert learnt == []


def test_averages_are_of_the_base_model_and_one_of_each_later_period(stage):
    models: list[Any] = []
    original = stream.as_learned

    def as_learned(model, collator, args):
        models.append(model)
        return original(model, collator, args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, "as_learned", as_learned)
        patch.setattr(stream._Stage, "_forget_others", lambda *_: None)
        stage.run(StreamPoint(0, 4, "scores"))
    scores = models[-1]
    alone = [
        stage._models[at] for at in (stage._base, *(StreamPoint(0, t, "scores") for t in (3, 4)))
    ]
    assert list(scores.models) == alone
    again = stage._fresh(stage._periods[3])
    assert all(map(torch.equal, alone[-1].parameters(), again.parameters()))
    stage.run(StreamPoint(0, 3, "average"))
    third = stage._model(StreamPoint(0, 3, "average"))
    newest = stage._model(StreamPoint(0, 3, "none"))
    expected = average_parameters([alone[0], newest])
    for name, value in third.state_dict().items():
        torch.testing.assert_close(value, expected[name])


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
    points: list[StreamPoint] = []
    original = stream._Stage.run

    def counted(stage, point):
        points.append(point)
        return original(stage, point)

    monkeypatch.setattr(stream._Stage, "run", counted)
    run(results, seeds=seeds)
    expected = [(p, r) for p, r in read(whole).items() if p.seed in seeds]
    assert list(read(results).items()) == expected  # to the last digit
    assert points == [point for point, _ in expected][done:]
    assert (points[0].method, points[0].period) == (METHODS[1], PERIODS)


def test_a_finished_stream_is_left_alone_and_takes_further_methods(whole, tmp_path, monkeypatch):
    results = tmp_path / "stream.jsonl"
    results.write_bytes(whole.read_bytes())
    monkeypatch.setattr(stream._Stage, "run", lambda _, point: {"point of": point.method})
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
    assert StreamArguments("r.jsonl").methods[0] == "none"


@pytest.mark.parametrize("own", [{"strengths": [1.0]}, {"seed": 3}], ids=str)
def test_what_the_stream_varies_cannot_be_set(own, tmp_path):
    with pytest.raises(ConsolidationError, match=f"^the experiment sets {next(iter(own))} itself"):
        run(tmp_path / "stream.jsonl", replace(LEARNING, **own))


def record(seed: int, period: int, method: str, test: list[float], multiple=None) -> dict:
    point = {"seed": seed, "period": period, "method": method, "multiple": multiple}
    return {"point": point, "test": test}


RECORDS = [
    *(record(0, period, "frozen", [0.6, 0.5, 0.4, 0.3]) for period in (2, 3, 4)),
    record(0, 3, "retrained", [0.7, 0.7, 0.7, 0.4]),
    record(0, 4, "retrained", [0.8, 0.8, 0.8, 0.8]),
    record(0, 3, "none", [0.4, 0.4, 0.8, 0.5]),
    record(0, 4, "none", [0.3, 0.3, 0.6, 0.8]),
    record(0, 3, "kfc", [0.9, 0.9, 0.9, 0.9], 10.0),
    record(0, 3, "kfc", [0.6, 0.5, 0.7, 0.4], 1.0),
    record(0, 4, "kfc", [0.6, 0.5, 0.7, 0.7], 1.0),
    record(0, 3, "l2", [0.6, 0.5, 0.4, 0.4], 0.1),
]
SECOND = [
    *(record(1, period, "frozen", [0.5, 0.5, 0.3, 0.3]) for period in (2, 3, 4)),
    record(1, 3, "retrained", [0.7, 0.7, 0.7, 0.6]),
    record(1, 4, "retrained", [0.8, 0.8, 0.8, 0.6]),
    record(1, 3, "none", [0.4, 0.4, 0.8, 0.3]),
    record(1, 4, "none", [0.3, 0.3, 0.6, 0.6]),
]


def write(path: Path, records: list[dict], **changes: Any) -> Path:
    settings = {"task": "articles", "periods": PERIODS, "base_periods": BASE} | changes
    lines = [{"settings": settings}, *records]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def rows_of(table: str) -> list[str]:
    lines = table.split("\n\n", maxsplit=1)[0].splitlines()
    assert {line.count("|") for line in lines} == {9}
    return lines[2:]


def test_table_has_the_chosen_run_of_each_finished_method(tmp_path):
    table = stream_table(write(tmp_path / "results.jsonl", RECORDS))
    assert rows_of(table) == [
        "| frozen |  | 50.0 | 30.0 | 45.0 |  | -35.0 | 30.0 |",
        "| retrained |  | 80.0 | 80.0 | 80.0 | +35.0 |  | 40.0 |",
        "| none |  | 40.0 | 80.0 | 50.0 | +5.0 | -30.0 | 50.0 |",
        "| kfc | 1 | 60.0 | 70.0 | 62.5 | +17.5 | -17.5 | 40.0 |",
    ]
    assert "mean over periods 1 to 3" in table
    assert "±" not in table
    assert table.endswith("Not finished, and left out: l2.")


def test_table_has_means_and_deviations_over_seeds(tmp_path):
    table = stream_table(write(tmp_path / "results.jsonl", RECORDS[:-1] + SECOND))
    assert rows_of(table)[2:] == [
        "| none |  | 40.0 ± 0.0 | 70.0 ± 14.1 | 47.5 ± 3.5 | +5.0 ± 0.0 | -30.0 ± 0.0 "
        "| 40.0 ± 14.1 |",
        "| kfc | 1 | 60.0 | 70.0 | 62.5 | +17.5 | -17.5 | 40.0 |",
    ]
    assert "mean ± standard deviation over 2 seeds" in table
    assert table.endswith("Finished in fewer seeds: kfc (1).")


def test_with_a_single_update_there_is_no_next_period(tmp_path):
    records = [
        record(0, 4, name, [0.6, 0.5, 0.4, value])
        for name, value in (("frozen", 0.3), ("retrained", 0.5), ("none", 0.5))
    ]
    table = stream_table(write(tmp_path / "results.jsonl", records, base_periods=3))
    assert rows_of(table)[2] == "| none |  | 50.0 | 50.0 | 50.0 | +5.0 | +0.0 |  |"


def test_table_and_pictures_refuse_what_is_no_stream(tmp_path):
    results = write(tmp_path / "results.jsonl", RECORDS[:4])
    with pytest.raises(ConsolidationError, match=r"no finished run of 'retrained'.*run the stream"):
        stream_table(results)
    results.write_text('{"settings": {"task": "articles"}}\n')
    with pytest.raises(
        ConsolidationError, match=r"holds no stream of periods.*'periods'.*give the"
    ):
        save_stream_figures(results, tmp_path)
    with pytest.raises(ConsolidationError, match="does not hold the runs of an experiment"):
        stream_table(tmp_path / "absent.jsonl")


MANY = RECORDS + [
    record(0, period, f"method {n}", [0.5, 0.5, 0.5, 0.5]) for n in range(12) for period in (3, 4)
]


@pytest.mark.parametrize("records", [RECORDS, RECORDS[:-1] + SECOND, MANY], ids=["1", "2", "many"])
def test_pictures_are_made_of_the_file_alone(records, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules["matplotlib"].rcParams, "svg.fonttype", "none")
    results = write(tmp_path / "results.jsonl", records)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # such as a layout that does not fit
        pictures = save_stream_figures(results, tmp_path / "new")
    assert [path.name for path in pictures] == [
        f"results_{name}.{suffix}"
        for name in ("last_update", "each_update")
        for suffix in ("png", "svg")
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures[::2])
    last, each = (path.read_text("utf-8") for path in pictures[1::2])
    for shown in ("frozen  30.0", "kfc  70.0", "articles after the update on period 4"):
        assert f">{shown}<" in last
    assert ">l2" not in last
    for shown in ("none", "kfc", "retrained", "after period 3", "after period 4"):
        assert f">{shown}<" in each


def test_labels_are_spread_out_no_further_than_need_be():
    spread = _spread_out([0.0, 5.0, 5.0, 5.2, 9.9], gap=1.0, low=0.0, high=10.0)
    assert spread == pytest.approx([0.0, 4.0667, 5.0667, 6.0667, 9.9], abs=1e-3)
    crowded = _spread_out([9.9] * 11, gap=10 / 11, low=0.0, high=10.0)
    assert crowded[-1] == pytest.approx(10.0)
    assert all(b - a == pytest.approx(10 / 11) for a, b in pairwise(crowded))


def test_the_recipe_goes_on_from_the_same_file_of_which_table_and_pictures_are_made(
    whole, tmp_path, monkeypatch
):
    before = whole.read_bytes()
    told = "--task articles --periods 4 --base_periods 2 --methods l2 --seeds 0 1 --epochs 1 "
    told += "--hidden_size 8 --vocab_size 500 --learning_rate 0.01 --train_examples 64 "
    told += "--validation_examples 64 --test_examples 64"
    monkeypatch.setattr(sys, "argv", ["stream.py", "--results", str(whole), *told.split()])
    runpy.run_path(str(RECIPE), run_name="__main__")
    assert whole.read_bytes() == before
    table = stream_table(whole)
    assert re.search(r"^\| rehearsal:0.5\+ewc \| 100? \| [\d.]+ ± [\d.]+ \|", table, re.MULTILINE)
    assert len(save_stream_figures(whole, tmp_path)) == len(list(tmp_path.iterdir())) == 4
