"""A ledger keeps every finished run, whatever happens to the process that writes it."""

import json
import logging
import sys
from dataclasses import dataclass

import pytest

from hf_kfc.curvature import CurvatureArguments
from hf_kfc.errors import ConsolidationError
from laboratory.arguments import LearningArguments, settings_of
from laboratory.ledger import Ledger, read_ledger


@dataclass(frozen=True)
class Place:
    tasks: tuple[str, ...]
    strength: float | None = None


ONE, TWO = Place(("a", "b"), 0.5), Place(("b",))
SETTINGS = {"size": 3, "names": ("x", "y")}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "new" / "runs.jsonl"
    ledger = Ledger(path, SETTINGS, Place)
    assert not path.parent.exists()  # nothing is written before there is something to keep
    ledger.add(ONE, {"test": 0.25})
    ledger.add(TWO, {"test": 0.75})
    return path


def test_what_was_added_is_read(path):
    header, records = read_ledger(path, Place)
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
    ledger = Ledger(path, SETTINGS, Place)
    assert list(ledger.records) == [ONE, TWO]
    assert path.read_bytes() == before
    ledger.add(Place(("c",)), {"test": 1.0})
    assert path.read_bytes().startswith(before)
    assert len(read_ledger(path, Place)[1]) == 3


def test_another_command_is_told_above_its_runs(path, monkeypatch):
    before = path.read_text()
    monkeypatch.setattr(sys, "argv", ["recipes/other.py", "--more"])
    ledger = Ledger(path, SETTINGS, Place)
    assert path.read_text() == before  # nothing is added yet
    ledger.add(Place(("c",)), {"test": 1.0})
    ledger.add(Place(("d",)), {"test": 1.0})
    told, *runs = map(json.loads, path.read_text().removeprefix(before).splitlines())
    assert told["command"] == "recipes/other.py --more"
    assert [run["point"]["tasks"] for run in runs] == [["c"], ["d"]]
    header, records = read_ledger(path, Place)
    assert [made["command"] for made in header["made_by"]][1:] == ["recipes/other.py --more"]
    assert len(records) == 4


def test_other_settings_are_refused_by_name(path):
    before = path.read_bytes()
    with pytest.raises(ConsolidationError, match="made with other size; repeat"):
        Ledger(path, SETTINGS | {"size": 4}, Place)
    assert path.read_bytes() == before


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_that_a_killed_run_left_unfinished_is_dropped_and_said(path, cut, caplog):
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with caplog.at_level(logging.WARNING):
        ledger = Ledger(path, SETTINGS, Place)
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
        Ledger(path, SETTINGS, Place)
    assert path.read_text(encoding="latin-1") == content


def test_what_cannot_be_read_or_made_is_refused(tmp_path):
    with pytest.raises(ConsolidationError, match="does not hold the runs"):
        read_ledger(tmp_path / "missing.jsonl", Place)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is not a folder"):
        Ledger(tmp_path / "file" / "runs.jsonl", SETTINGS, Place)


def test_results_older_than_a_field_are_gone_on_from_at_its_default() -> None:
    old = settings_of(CurvatureArguments())["CurvatureArguments"]
    assert "products" not in old
    assert old["sharing"] == "expand"
    new = settings_of(CurvatureArguments(products="bfloat16"))["CurvatureArguments"]
    assert new == old | {"products": "bfloat16"}
    learning = settings_of(LearningArguments(penalty_every=2))["LearningArguments"]
    assert learning["penalty_every"] == 2
    assert "penalty_dtype" not in learning
