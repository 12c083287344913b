"""What JSON that anybody may have written may hold, as strict dataclasses.

The types of the fields are checked by :func:`huggingface_hub.dataclasses.strict`, which reads them
when the class is made: no ``from __future__ import annotations`` here.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, field, fields, make_dataclass
from reprlib import repr as short
from typing import Any, TypeVar

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError

__all__ = ["COUNT", "NUMBER", "SIZE", "between", "checked", "problems_of", "read"]

T = TypeVar("T")


def checked(expected: str, *checks: Callable[[Any], object]) -> dict[str, Any]:
    """Return a field's metadata: what it holds in words, and checks that raise ValueError."""
    return {"expected": expected, "validator": list(checks)}


def between(low: float, high: float) -> Callable[[Any], None]:
    """Return a check that a number, or each in a list or mapping, is in a range; None may stand."""

    def check(value: Any) -> None:
        if isinstance(value, dict | list):
            for part in value.values() if isinstance(value, dict) else value:
                check(part)
        elif value is not None and not low <= value <= high:
            raise ValueError

    return check


COUNT = between(0, 2**53 - 1)
"""Examples, tokens, bytes: what float64 counts without gaps."""
NUMBER = between(-sys.float_info.max, sys.float_info.max)
"""Neither NaN nor infinite, nor an integer that no float holds."""
SIZE = between(0, sys.float_info.max)


_CHECKS: dict[type, dict[str, tuple[type, str]]] = {}


def _checks(schema: type) -> dict[str, tuple[type, str]]:
    """Return, for each field, a strict dataclass of it alone, and what it holds in words."""
    if schema not in _CHECKS:
        _CHECKS[schema] = {
            f.name: (
                strict(make_dataclass(f.name, [(f.name, f.type, field(metadata=f.metadata))])),
                f.metadata["expected"],
            )
            for f in fields(schema)
            if f.metadata
        }
    return _CHECKS[schema]


def problems_of(schema: type, values: Mapping[str, Any]) -> list[str]:
    """Say which fields hold something else than they should, one phrase per field.

    Args:
        schema: A dataclass whose fields are :func:`checked`.
        values: By name; other names are not looked at.
    """
    problems = []
    for name, (check, expected) in _checks(schema).items():
        if name in values:
            try:
                check(values[name])
            except StrictDataclassError:
                problems.append(f"field {name} is {short(values[name])}, expected {expected}")
    return problems


def read(schema: type[T], values: Any, what: str) -> tuple[T | None, list[str]]:
    """Read a JSON object.

    Args:
        schema: What it should be.
        values: The object; untrusted. Names that the schema lacks are not looked at.
        what: What it is, for the phrases.

    Returns:
        The object, and one phrase for each field that is missing or holds something else; None if
        there are any.
    """
    if not isinstance(values, dict):
        return None, [f"{what} is {short(values)}, expected an object"]
    problems = [
        f"{what}: field {f.name} is missing, expected {f.metadata['expected']}"
        for f in fields(schema)  # type: ignore[arg-type]
        if f.name not in values and f.default is MISSING and f.default_factory is MISSING
    ]
    problems += [f"{what}: {phrase}" for phrase in problems_of(schema, values)]
    if problems:
        return None, problems
    names = _checks(schema).keys() & values.keys()
    return schema(**{name: values[name] for name in names}), []
