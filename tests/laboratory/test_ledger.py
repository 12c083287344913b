"""A ledger keeps every finished run, whatever happens to the process that writes it."""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_kfc.curvature import CurvatureArguments
from hf_kfc.errors import ConsolidationError
from laboratory.arguments import (
    DataArguments,
    LearningArguments,
    RankerArguments,
    settings_of,
)
from laboratory.ledger import Ledger, read_ledger
from laboratory.points import Point


def point(*tasks: str, **more: Any) -> Point:
    return Point(0, tasks, "kfc", **more)


ONE, TWO = point("a", "b", strengths=(0.5,)), point("b", multiple=3.0)
SETTINGS = {"size": 3, "names": ("x", "y")}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "new" / "runs.jsonl"
    ledger = Ledger(path, SETTINGS)
    assert not path.parent.exists()  # nothing is written before there is something to keep
    ledger.add(ONE, {"test": 0.25})
    ledger.add(TWO, {"test": 0.75})
    return path


def test_what_was_added_is_read(path):
    header, records = read_ledger(path)
    assert header["settings"] == {"size": 3, "names": ["x", "y"]}
    (made_by,) = header["made_by"]
    assert made_by["command"]
    assert made_by["versions"]["torch"]
    assert [(point, record["test"]) for point, record in records.items()] == [
        (ONE, 0.25),
        (TWO, 0.75),
    ]


def test_a_ledger_goes_on_where_it_was(path):
    before = path.read_bytes()
    ledger = Ledger(path, SETTINGS)
    assert list(ledger.records) == [ONE, TWO]
    assert path.read_bytes() == before
    ledger.add(point("c"), {"test": 1.0})
    assert path.read_bytes().startswith(before)
    assert len(read_ledger(path)[1]) == 3


def test_another_command_is_told_above_its_runs(path, monkeypatch):
    before = path.read_text()
    monkeypatch.setattr(sys, "argv", ["recipes/other.py", "--more"])
    ledger = Ledger(path, SETTINGS)
    assert path.read_text() == before  # nothing is added yet
    ledger.add(point("c"), {"test": 1.0})
    ledger.add(point("d"), {"test": 1.0})
    told, *runs = map(json.loads, path.read_text().removeprefix(before).splitlines())
    assert told["command"] == "recipes/other.py --more"
    assert [run["point"]["tasks"] for run in runs] == [["c"], ["d"]]
    header, records = read_ledger(path)
    assert [made["command"] for made in header["made_by"]][1:] == ["recipes/other.py --more"]
    assert len(records) == 4


def test_other_settings_are_refused_by_name(path):
    before = path.read_bytes()
    with pytest.raises(ConsolidationError, match="made with other size; repeat"):
        Ledger(path, SETTINGS | {"size": 4})
    assert path.read_bytes() == before


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_that_a_killed_run_left_unfinished_is_dropped_and_said(path, cut, caplog):
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with caplog.at_level(logging.WARNING):
        ledger = Ledger(path, SETTINGS)
    assert caplog.text.count("ends within a line") == 1
    assert list(ledger.records) == [ONE]
    ledger.add(TWO, {"test": 0.75})
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]\n", "{}\n", json.dumps({"settings": {}}) + '\n{"point": 1}\n', "\xff\n"],
    ids=repr,
)
def test_something_else_is_refused_and_left_alone(content, tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(ConsolidationError, match="does not hold the runs of an experiment"):
        Ledger(path, SETTINGS)
    assert path.read_text(encoding="latin-1") == content


def test_what_cannot_be_read_or_made_is_refused(tmp_path):
    with pytest.raises(ConsolidationError, match="does not hold the runs"):
        read_ledger(tmp_path / "missing.jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is not a folder"):
        Ledger(tmp_path / "file" / "runs.jsonl", SETTINGS)


BEFORE = {"old_validation": 0.9, "old_test": 0.8}
AFTER = {"old_validation": 0.5, "old_test": 0.4, "new_validation": 0.7, "new_test": 0.6}


def test_a_grid_from_before_the_one_engine_is_read(tmp_path):
    path = tmp_path / "grid.jsonl"
    runs = [("none", None, None), ("l2", 0.0, 0.001), ("kfc", 0.1, 30.0)]
    lines = [{"settings": {"GridArguments": {"old_task": "a", "task": "b"}}}] + [
        {"point": {"seed": 1, "method": m, "damping": d, "multiple": s}, "before": BEFORE, **AFTER}
        for m, d, s in runs
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    records = read_ledger(path)[1]
    assert list(records) == [
        Point(1, ("a",), "individual"),
        Point(1, ("a", "b"), "none"),
        Point(1, ("a", "b"), "l2", (), 0.001),
        Point(1, ("a", "b"), "kfc:0.1", (), 30.0),
    ]
    alone, *others = ({s: r[s] for s in ("validation", "test")} for r in records.values())
    assert alone == {"validation": {"a": 0.9}, "test": {"a": 0.8}}
    assert others == [{"validation": {"a": 0.5, "b": 0.7}, "test": {"a": 0.4, "b": 0.6}}] * 3


def test_a_stream_from_before_the_one_engine_is_read(tmp_path):
    path = tmp_path / "stream.jsonl"
    runs = [
        *((period, "frozen", None) for period in (2, 3, 4)),
        *((period, "retrained", None) for period in (3, 4)),
        (4, "kfc", 10.0),
    ]
    values = {"test": [0.1, 0.2, 0.3, 0.4], "validation": [0.5, 0.6, 0.7, 0.8]}
    sizes = {"examples": {"validation": [5, 6, 7, 8]}}
    lines = [{"settings": {"task": "t", "periods": 4, "base_periods": 2}}] + [
        {"point": {"seed": 0, "period": p, "method": m, "multiple": s}, **values, **sizes}
        for p, m, s in runs
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    records = read_ledger(path)[1]
    assert list(records) == [
        Point(0, ("1-2",), "individual"),
        Point(0, ("1-2", "3"), "combined"),
        Point(0, ("1-2", "3", "4"), "combined"),
        Point(0, ("1-2", "3", "4"), "kfc", (), 10.0),
    ]
    for record in records.values():
        assert record["test"] == {"1": 0.1, "2": 0.2, "3": 0.3, "4": 0.4}
        assert record["examples"]["validation"] == {"1": 5, "2": 6, "3": 7, "4": 8}


def test_results_older_than_a_field_are_gone_on_from_at_its_default() -> None:
    old = settings_of(CurvatureArguments())["CurvatureArguments"]
    assert "products" not in old
    assert old["sharing"] == "expand"
    new = settings_of(CurvatureArguments(products="bfloat16"))["CurvatureArguments"]
    assert new == old | {"products": "bfloat16"}
    learning = settings_of(LearningArguments(penalty_every=2))["LearningArguments"]
    assert learning["penalty_every"] == 2
    assert "penalty_dtype" not in learning


BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize(
    "path",
    [*BENCHMARKS.glob("permutations/*.jsonl"), *BENCHMARKS.glob("stream/*.jsonl")],
    ids=lambda path: path.stem,
)
def test_committed_results_can_be_gone_on_from(path: Path) -> None:
    """Whatever fields the arguments have got since, at their defaults."""
    told = read_ledger(path)[0]["settings"]
    classes = (RankerArguments, DataArguments, LearningArguments, CurvatureArguments)
    again = settings_of(*(own(**told[own.__name__]) for own in classes))
    assert json.loads(json.dumps(again)) == {name: told[name] for name in again}
