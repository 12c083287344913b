"""Architectures of transformers, from estimate to training, held to a float64 oracle.

A sample of every task by default; all that the survey found right with ``HF_KFC_ARCHITECTURES=all``
(see ``survey.py``).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from catalogue import TASKS, Architecture, architectures
from check import check
from survey import read

RESULTS = Path(__file__).parents[2] / "benchmarks" / "architectures" / "results.jsonl"
RIGHT = {row["architecture"] for row in read(RESULTS) if row["stage"] == "done"}
A_TASK = 4
"""Architectures of each task in the sample."""


def chosen() -> list[Architecture]:
    right = [one for one in architectures() if str(one) in RIGHT]
    if os.environ.get("HF_KFC_ARCHITECTURES") == "all":
        return right
    sample = []
    for task in TASKS:
        of_task = [one for one in right if one.task == task]
        sample += of_task[:: max(1, len(of_task) // A_TASK)][:A_TASK]
    return sample


@pytest.mark.parametrize("architecture", chosen(), ids=str)
def test_is_right(architecture: Architecture) -> None:
    row = check(architecture)
    assert row["stage"] == "done", row["why"]


def test_most_are_right() -> None:
    tried = [row for row in read(RESULTS) if row["stage"] != "build"]
    assert len(tried) >= 200
    assert len(RIGHT) >= 0.95 * len(tried)
