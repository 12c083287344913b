"""What is made of a stream's results: its table and its pictures."""

import json
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from hf_kfc.errors import ConsolidationError
from laboratory.points import Point, periods_so_far
from laboratory.report import StreamRuns, stream_table
from laboratory.report.stream_figures import _spread_out, save_stream_figures

PERIODS, BASE = 4, 2
FROZEN, RETRAINED = "individual", "combined"


def at(seed: int, period: int, method: str, multiple: float | None = None) -> Point:
    """The run that has learnt a period."""
    return Point(seed, periods_so_far(BASE, period), method, (), multiple)


def record(
    seed: int, period: int, method: str, test: list[float], multiple: float | None = None
) -> dict[str, Any]:
    point = at(seed, period, method, multiple).to_dict()
    return {"point": point, "test": {str(n): value for n, value in enumerate(test, 1)}}


RECORDS = [
    record(0, 2, FROZEN, [0.6, 0.5, 0.4, 0.3]),
    record(0, 3, RETRAINED, [0.7, 0.7, 0.7, 0.4]),
    record(0, 4, RETRAINED, [0.8, 0.8, 0.8, 0.8]),
    record(0, 3, "none", [0.4, 0.4, 0.8, 0.5]),
    record(0, 4, "none", [0.3, 0.3, 0.6, 0.8]),
    record(0, 3, "kfc", [0.9, 0.9, 0.9, 0.9], 10.0),
    record(0, 3, "kfc", [0.6, 0.5, 0.7, 0.4], 1.0),
    record(0, 4, "kfc", [0.6, 0.5, 0.7, 0.7], 1.0),
    record(0, 3, "l2", [0.6, 0.5, 0.4, 0.4], 0.1),
]
SECOND = [
    record(1, 2, FROZEN, [0.5, 0.5, 0.3, 0.3]),
    record(1, 3, RETRAINED, [0.7, 0.7, 0.7, 0.6]),
    record(1, 4, RETRAINED, [0.8, 0.8, 0.8, 0.6]),
    record(1, 3, "none", [0.4, 0.4, 0.8, 0.3]),
    record(1, 4, "none", [0.3, 0.3, 0.6, 0.6]),
]


def write(path: Path, records: list[dict], **changes: Any) -> Path:
    settings = {"task": "articles", "periods": PERIODS, "base_periods": BASE} | changes
    lines = [{"settings": settings}, *records]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def made(path: Path) -> tuple[list[str], str]:
    """The rows of a stream's table as text, and its notes."""
    table, notes = stream_table(StreamRuns.read(path))
    assert {len(row) for row in table.rows} == {len(table.columns)}
    return [" | ".join(row) for row in table.rows], notes


def test_table_has_the_chosen_run_of_each_finished_method(tmp_path):
    rows, notes = made(write(tmp_path / "results.jsonl", RECORDS))
    assert rows == [
        "frozen | - | 50.0 | 30.0 | 45.0 | - | -35.0 | 30.0",
        "retrained | - | 80.0 | 80.0 | 80.0 | +35.0 | - | 40.0",
        "none | - | 40.0 | 80.0 | 50.0 | +5.0 | -30.0 | 50.0",
        "kfc | 1 | 60.0 | 70.0 | 62.5 | +17.5 | -17.5 | 40.0",
    ]
    assert "mean over periods 1 to 3" in notes
    assert "±" not in notes
    assert notes.endswith("Not finished, and left out: l2.")


def test_table_has_means_and_deviations_over_seeds(tmp_path):
    rows, notes = made(write(tmp_path / "results.jsonl", RECORDS[:-1] + SECOND))
    assert rows[2:] == [
        "none | - | 40.0 ± 0.0 | 70.0 ± 14.1 | 47.5 ± 3.5 | +5.0 ± 0.0 | -30.0 ± 0.0 | 40.0 ± 14.1",
        "kfc | 1 | 60.0 | 70.0 | 62.5 | +17.5 | -17.5 | 40.0",
    ]
    assert "mean ± standard deviation over 2 seeds" in notes
    assert notes.endswith("Finished in fewer seeds: kfc (1).")


def test_with_a_single_update_there_is_no_next_period(tmp_path):
    records = []
    for name, tasks, value in (
        (FROZEN, ["1-3"], 0.3),
        (RETRAINED, ["1-3", "4"], 0.5),
        ("none", ["1-3", "4"], 0.5),
    ):
        records.append(record(0, 4, name, [0.6, 0.5, 0.4, value]))
        records[-1]["point"]["tasks"] = tasks
    rows, _ = made(write(tmp_path / "results.jsonl", records, base_periods=3))
    assert rows[2] == "none | - | 50.0 | 50.0 | 50.0 | +5.0 | +0.0 | -"


def test_what_is_no_stream_is_refused(tmp_path):
    results = write(tmp_path / "results.jsonl", RECORDS[:2])
    with pytest.raises(ConsolidationError, match=r"no finished run of 'retrained'.*run the stream"):
        StreamRuns.read(results)
    results.write_text('{"settings": {"task": "articles"}}\n')
    with pytest.raises(
        ConsolidationError, match=r"holds no stream of periods.*'periods'.*give the"
    ):
        StreamRuns.read(results)
    with pytest.raises(ConsolidationError, match="does not hold the runs of an experiment"):
        StreamRuns.read(tmp_path / "absent.jsonl")


MANY = RECORDS + [
    record(0, period, f"method {n}", [0.5, 0.5, 0.5, 0.5]) for n in range(12) for period in (3, 4)
]


@pytest.mark.parametrize("records", [RECORDS, RECORDS[:-1] + SECOND, MANY], ids=["1", "2", "many"])
def test_pictures_are_made_of_the_file_alone(records, tmp_path, monkeypatch):
    monkeypatch.setitem(pytest.importorskip("matplotlib").rcParams, "svg.fonttype", "none")
    results = write(tmp_path / "results.jsonl", records)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # such as a layout that does not fit
        pictures = save_stream_figures(StreamRuns.read(results), "results", tmp_path)
    assert pictures == {
        name: tmp_path / f"results_{name}.png" for name in ("last_update", "each_update")
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures.values())
    last, each = (path.with_suffix(".svg").read_text("utf-8") for path in pictures.values())
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
