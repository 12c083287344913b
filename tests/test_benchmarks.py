"""The speed benchmarks run at toy sizes, and leave the committed results alone."""

import subprocess
import sys
from pathlib import Path

import pytest

SPEED = Path(__file__).parents[1] / "benchmarks" / "speed"


@pytest.mark.parametrize(
    ("script", "words", "shown"),
    [
        ("step", ("--penalty_every", 2), "10 merged to rank 4"),
        ("scaling", (), "penalty, power of tasks"),
        ("size", ("--ranker", "cnn"), "published, rank 4, bfloat16"),
    ],
)
def test_at_toy_sizes(script: str, words: tuple[object, ...], shown: str) -> None:
    command = [sys.executable, str(SPEED / f"{script}.py"), "--tiny", *map(str, words)]
    before = {path: path.stat().st_mtime_ns for path in SPEED.rglob("*.json")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    assert {path: path.stat().st_mtime_ns for path in SPEED.rglob("*.json")} == before
