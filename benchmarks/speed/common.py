"""What the benchmarks of this folder share: command line, turns, machine, results.

A contestant is a function that does the work once and returns its seconds. Contestants run in turns
within one process: a round is one run of each, the next round starts one contestant further on, and
the first round is not counted. A ratio is taken within each round; its median is reported, and
its smallest and largest value beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
RESULTS = HERE / "results"
REPETITIONS = 5
FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
PACKAGES = ("torch", "transformers", "kronfluence", "curvlinops-for-pytorch", "nngeometry")

Seconds = Mapping[str, Sequence[float]]


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the script's text as it is and shows defaults that the help does not tell."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def command_line(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=Help)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch on the CPU")
    parser.add_argument(
        "--repetitions", type=int, default=REPETITIONS, help="counted rounds, at least 5"
    )
    parser.add_argument("--tiny", action="store_true", help="toy sizes: only to see that it runs")
    parser.add_argument(
        "--output", type=Path, help="results file (default: results/NAME.json; none with --tiny)"
    )
    return parser


def start(parser: argparse.ArgumentParser, least: int = REPETITIONS) -> argparse.Namespace:
    """Parse the command line, with at least so many rounds, and set up PyTorch."""
    arguments = parser.parse_args()
    if arguments.repetitions < least and not arguments.tiny:
        parser.error(f"--repetitions is {arguments.repetitions}; give at least {least}")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but PyTorch finds no GPU; leave it out")
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    arguments.load = round(os.getloadavg()[0], 2)
    return arguments


def synchronize(device: str) -> None:
    """Wait for what was started on a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(work: Callable[[], object], device: str) -> Callable[[], float]:
    """Make a contestant of a function that does not time itself."""

    def contestant() -> float:
        synchronize(device)
        begin = time.perf_counter()
        work()
        synchronize(device)
        return time.perf_counter() - begin

    return contestant


def alternate(
    contestants: Mapping[str, Callable[[], float]], repetitions: int, uncounted: int = 1
) -> dict[str, list[float]]:
    """Run contestants in turns.

    Args:
        contestants: By name.
        repetitions: Rounds that count.
        uncounted: Rounds before these.

    Returns:
        Seconds of every counted round, by name.
    """
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(1 - uncounted, repetitions + 1):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            spent = contestants[name]()
            if number > 0:
                seconds[name].append(spent)
        print(f"round {number} of {repetitions} done", file=sys.stderr)
    return seconds


def ratio(seconds: Seconds, name: str, to: str) -> dict[str, float]:
    """Return median, smallest and largest ratio of two contestants within a round."""
    ratios = [own / other for own, other in zip(seconds[name], seconds[to], strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def rows_of(seconds: Seconds, baseline: str) -> list[dict[str, Any]]:
    """Return a table row for each contestant: its median seconds, and its ratio to the baseline."""
    rows = []
    for name in seconds:
        own = ratio(seconds, name, baseline)
        rows.append(
            {
                "contestant": name,
                "seconds": statistics.median(seconds[name]),
                f"over {baseline}": own["median"],
                "least to most": f"{own['min']:.2f} to {own['max']:.2f}",
            }
        )
    return rows


def goal(
    what: str, value: float, *, at_most: float | None = None, at_least: float | None = None
) -> dict[str, Any]:
    """Compare a measured value with a goal of issue 6."""
    limit, sign = (at_most, "≤") if at_most is not None else (at_least, "≥")
    assert limit is not None
    met = value <= limit if sign == "≤" else value >= limit
    return {"what": what, "value": value, "goal": f"{sign} {limit:g}", "met": met}


def machine(arguments: argparse.Namespace) -> dict[str, Any]:
    """Describe what the benchmark runs on."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8") if information.is_file() else ""
    fields = dict(line.split("\t: ", 1) for line in lines.splitlines() if "\t: " in line)
    fields = {name.strip(): value for name, value in fields.items()}
    flags = fields.get("flags", "").split()
    described = {
        "cpu": fields.get("model name", platform.processor()),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "cpu flags": [flag for flag in FLAGS if flag in flags],
        "load at the start": arguments.load,
        "device": torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu",
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            described[package] = version(package)
        except PackageNotFoundError:
            described[package] = None
    return described


def write(
    arguments: argparse.Namespace,
    name: str,
    *,
    sizes: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    goals: Sequence[Mapping[str, Any]],
    rounds: Seconds | None = None,
    unit: str = "seconds",
    **more: Any,
) -> None:
    """Print what was measured and write it to a results file.

    Args:
        arguments: Of the command line.
        name: Of the file; the benchmark's name, then what tells its runs apart.
        sizes: Of the workload.
        rows: The table, a mapping of cells for each row.
        goals: From :func:`goal`.
        rounds: What every counted round measured, by contestant; None without rounds.
        unit: Of these.
        more: Other values worth keeping.
    """
    results = {
        "benchmark": name,
        "command": shlex.join([*_allocator(), "python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(arguments),
        "sizes": dict(sizes),
        "rows": list(rows),
        "goals": list(goals),
        **more,
    }
    if rounds is not None:
        values = {name: list(own) for name, own in rounds.items()}
        results |= {"repetitions": arguments.repetitions, "rounds": values, "unit": unit}
    for line in [*rows, *goals]:
        print(" | ".join(f"{key}: {_short(value)}" for key, value in line.items()))
    path = arguments.output
    if path is None:
        if arguments.tiny:
            return
        path = RESULTS / f"{name}-{arguments.device}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _allocator() -> list[str]:
    """What the environment says of malloc: whether memory that is free is given back."""
    names = sorted(name for name in os.environ if name.startswith("MALLOC_"))
    return [f"{name}={os.environ[name]}" for name in names]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
