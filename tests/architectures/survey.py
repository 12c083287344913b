"""Take every architecture of the catalogue through estimate, oracle, save, load and training.

    python tests/architectures/survey.py --output benchmarks/architectures/results.jsonl

Writes a JSON line for each as it goes, goes on where it was stopped, and then a table beside it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import warnings
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

os.environ.setdefault("TQDM_DISABLE", "1")

import torch
import transformers
from catalogue import TASKS, Architecture, architectures
from check import check

SECONDS = 120
"""Of CPU time that one architecture may take: another load does not change what is right."""
_NOT_TRIED = "build"


class _TooSlow(BaseException):
    """Not an Exception, so that nothing on the way takes it for one of its own."""


def _stop(_: int, __: FrameType | None) -> NoReturn:
    raise _TooSlow


def survey(output: Path) -> None:
    """Check what the file does not have yet.

    Args:
        output: JSON lines.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    done = {row["architecture"] for row in read(output)} if output.exists() else set()
    signal.signal(signal.SIGPROF, _stop)
    with output.open("a", encoding="utf-8") as file:
        for architecture in architectures():
            if str(architecture) not in done:
                file.write(json.dumps(_checked(architecture)) + "\n")
                file.flush()


def _checked(architecture: Architecture) -> dict[str, Any]:
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        return check(architecture)
    except _TooSlow:
        why = f"it took more than {SECONDS} s of CPU time"
        return {"architecture": str(architecture), "stage": "slow", "why": why}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def read(path: Path) -> list[dict[str, Any]]:
    """Read the results.

    Args:
        path: JSON lines.
    """
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(rows: list[dict[str, Any]]) -> str:
    """Count by task what was tried and what was right, and list what was not.

    Args:
        rows: Of :func:`read`.
    """
    tried = [row for row in rows if row["stage"] != _NOT_TRIED]
    right = [row for row in tried if row["stage"] == "done"]
    counts = {
        name: Counter(_task(row) for row in part)
        for name, part in (("all", rows), ("tried", tried), ("right", right))
    }
    lines = [
        "| task | classes | tiny ones built | right | share |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for task in (*TASKS, None):
        every, some, good = (
            sum(part.values()) if task is None else part[task] for part in counts.values()
        )
        lines.append(f"| {task or 'all'} | {every} | {some} | {good} | {good / max(some, 1):.1%} |")
    lines += ["", "Tried and not right:", ""]
    lines += [
        f"- `{row['architecture']}` ({row['stage']}): {row['why']}"
        for row in tried
        if row["stage"] != "done"
    ]
    return "\n".join(lines) + "\n"


def _task(row: dict[str, Any]) -> str:
    return str(row["architecture"]).partition("-")[0]


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--output", type=Path, default=Path("benchmarks/architectures/results.jsonl")
    )
    path: Path = parser.parse_args().output
    survey(path)
    path.with_suffix(".md").write_text(table(read(path)), encoding="utf-8")
