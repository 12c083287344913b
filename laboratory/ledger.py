"""A file of finished runs, from which a stopped experiment goes on."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_kfc.errors import ConsolidationError
from hf_kfc.files import refuse_blocked
from hf_kfc.ranking.comparison import command, versions

from .points import Point, Record, periods_so_far
from .processes import process_state

__all__ = ["Ledger", "read_ledger"]

logger = logging.getLogger(__name__)


class Ledger:
    """The runs done so far, in a JSON-lines file whose first line holds the settings.

    Every process knows them all; the main one writes. A last line that a killed process left
    unfinished is dropped. Runs that another command or other versions add stand below a line that
    tells these.

    Args:
        path: The file; made with the first run.
        settings: What must be the same for runs to stand in one file, as JSON values.

    Raises:
        ConsolidationError: The file holds runs with other settings, or something else.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        refuse_blocked(path.parent)
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.records: dict[Point, Record] = {}
        self._made_by = None
        if path.exists():
            header, self.records = read_ledger(path)
            self._made_by = header["made_by"][-1]
            found = header["settings"]
            if found != self.settings:
                different = [n for n in self.settings if found.get(n) != self.settings[n]]
                raise ConsolidationError(
                    f"{path} was made with other {' and '.join(different) or 'settings'}; repeat "
                    "those or give another --results"
                )
        process_state().wait_for_everyone()  # all have read before the first writes
        if path.exists() and process_state().is_main_process:
            path.write_bytes(_whole_lines(path.read_bytes()))

    def add(self, point: Point, record: Record) -> None:
        """Keep a run.

        Args:
            point: Which one.
            record: Its outcome, as JSON values.
        """
        self.records[point] = dict(record)
        if not process_state().is_main_process:
            return
        lines = [{"point": point.to_dict(), **record}]
        made_by = {"command": command(), "versions": versions()}
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines.insert(0, {"settings": self.settings, **made_by})
        elif made_by != self._made_by:
            lines.insert(0, made_by)
        self._made_by = made_by
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))


def read_ledger(path: Path) -> tuple[dict[str, Any], dict[Point, Record]]:
    """Read what a :class:`Ledger` wrote, or an older grid or stream.

    Args:
        path: The file.

    Returns:
        The ``settings`` with all that the runs were ``made_by``, a list of ``command`` and
        ``versions``; and the runs in their order.

    Raises:
        ConsolidationError: The file is not there or holds something else.
    """
    try:
        content = path.read_bytes()
        text = _whole_lines(content).decode("utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        settings = lines[0]["settings"]
        runs = {
            point: record
            for line in lines
            if "point" in line
            for point, record in _runs(line, settings)
        }
        made_by = [
            {"command": own.get("command", "-"), "versions": own.get("versions", {})}
            for own in lines
            if "point" not in own
        ]
    except (OSError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise ConsolidationError(
            f"{path} does not hold the runs of an experiment ({type(error).__name__}: {error}); "
            "mend it or give another --results"
        ) from error
    if len(_whole_lines(content)) < len(content):
        logger.warning("%s ends within a line, as a killed run leaves it: dropped", path)
    return {"settings": settings, "made_by": made_by}, runs


def _runs(line: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[tuple[Point, Record]]:
    """The runs that a line tells of, also one of a grid or a stream from before the one engine."""
    point = line["point"]
    if "period" in point:
        yield from _stream_run(point, line, settings)
    elif "damping" in point:
        yield from _grid_runs(point, line, settings["GridArguments"])
    else:
        yield (
            Point(
                point["seed"],
                tuple(point["tasks"]),
                point["method"],
                tuple(point.get("strengths", ())),
                point.get("multiple"),
            ),
            line,
        )


def _stream_run(
    point: Mapping[str, Any], line: Mapping[str, Any], settings: Mapping[str, Any]
) -> Iterator[tuple[Point, Record]]:
    base = settings["base_periods"]
    chain = periods_so_far(base, point["period"])
    if point["method"] == "frozen" and len(chain) > 1:
        return  # the base model as it was, measured again
    baselines = {"frozen": "individual", "retrained": "combined"}
    method = baselines.get(point["method"], point["method"])
    splits = {
        split: {str(number): value for number, value in enumerate(line[split], 1)}
        for split in ("validation", "test")
    }
    sizes = {
        split: {str(number): size for number, size in enumerate(counts, 1)}
        for split, counts in line["examples"].items()
    }
    found = Point(point["seed"], chain, method, (), point["multiple"])
    yield found, {**line, **splits, "examples": sizes}


def _grid_runs(
    point: Mapping[str, Any], line: Mapping[str, Any], grid: Mapping[str, Any]
) -> Iterator[tuple[Point, Record]]:
    old, new = grid["old_task"], grid["task"]
    splits = ("validation", "test")
    alone = {split: {old: line["before"][f"old_{split}"]} for split in splits}
    yield Point(point["seed"], (old,), "individual"), alone
    method = point["method"]
    if method not in ("none", "l2"):
        method = f"{method}:{point['damping']:g}"
    both = {split: {old: line[f"old_{split}"], new: line[f"new_{split}"]} for split in splits}
    yield Point(point["seed"], (old, new), method, (), point["multiple"]), both


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]
