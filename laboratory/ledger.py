"""A file of finished runs, from which a stopped experiment goes on."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

from hf_kfc.errors import ConsolidationError
from hf_kfc.files import refuse_blocked

from .processes import process_state
from .results import command, versions

__all__ = ["Ledger", "read_ledger"]

logger = logging.getLogger(__name__)

_Point = TypeVar("_Point")


class Ledger(Generic[_Point]):
    """The runs done so far, in a JSON-lines file whose first line holds the settings.

    Every process knows them all; the main one writes. A last line that a killed process left
    unfinished is dropped. Runs that another command or other versions add stand below a line that
    tells these.

    Args:
        path: The file; made with the first run.
        settings: What must be the same for runs to stand in one file, as JSON values.
        point: Dataclass that tells one run from another.

    Raises:
        ConsolidationError: The file holds runs with other settings, or something else.
    """

    def __init__(self, path: Path, settings: dict[str, Any], point: type[_Point]) -> None:
        refuse_blocked(path.parent)
        self.path, self.settings = path, json.loads(json.dumps(settings))
        self.records: dict[_Point, dict[str, Any]] = {}
        self._made_by = None
        if path.exists():
            header, self.records = read_ledger(path, point)
            self._made_by = header["made_by"][-1]
            found = header["settings"]
            if found != self.settings:
                different = [n for n in self.settings if found.get(n) != self.settings[n]]
                raise ConsolidationError(
                    f"{path} was made with other {' and '.join(different)}; repeat those or give "
                    "another --results"
                )
        process_state().wait_for_everyone()  # all have read before the first writes
        if path.exists() and process_state().is_main_process:
            path.write_bytes(_whole_lines(path.read_bytes()))

    def add(self, point: _Point, record: Mapping[str, Any]) -> None:
        """Keep a run.

        Args:
            point: Which one.
            record: Its outcome, as JSON values.
        """
        self.records[point] = dict(record)
        if not process_state().is_main_process:
            return
        lines = [{"point": asdict(point), **record}]  # type: ignore[call-overload]
        made_by = {"command": command(), "versions": versions()}
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lines.insert(0, {"settings": self.settings, **made_by})
        elif made_by != self._made_by:
            lines.insert(0, made_by)
        self._made_by = made_by
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))


def read_ledger(
    path: Path, point: type[_Point]
) -> tuple[dict[str, Any], dict[_Point, dict[str, Any]]]:
    """Read what a :class:`Ledger` wrote.

    Args:
        path: The file.
        point: The dataclass of its runs.

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
        runs = {point(**_hashable(line["point"])): line for line in lines if "point" in line}
        others = [line for line in lines if "point" not in line]
        header = {
            "settings": lines[0]["settings"],
            "made_by": [
                {"command": own.get("command", "-"), "versions": own.get("versions", {})}
                for own in others
            ],
        }
    except (OSError, LookupError, ValueError, TypeError, AttributeError) as error:
        raise ConsolidationError(
            f"{path} does not hold the runs of an experiment ({type(error).__name__}: {error}); "
            "mend it or give another --results"
        ) from error
    if len(_whole_lines(content)) < len(content):
        logger.warning("%s ends within a line, as a killed run leaves it: dropped", path)
    return header, runs


def _hashable(point: Mapping[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in point.items()}


def _whole_lines(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]
