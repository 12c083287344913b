"""What describes a prior's blocks, as JSON values that anybody may have written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from reprlib import repr as short
from typing import Any, TypeGuard

from ..curvature import Layout
from ..errors import PriorError

__all__ = [
    "ANCHOR",
    "ROWS",
    "is_list_of_names",
    "malformed",
    "parameters_of",
    "part_of",
    "strings",
    "tensors_of",
]

ANCHOR = "anchor/"
"""What the names of the anchor's tensors begin with."""
ROWS = ("inputs", "input_examples")
"""The fields of an embedding's block that may name a tensor each."""


def part_of(config: Mapping[str, Any], layers: Sequence[str]) -> dict[str, Any]:
    """Leave out of the values all blocks but some; their parameters are ignored.

    Args:
        config: The values; untrusted.
        layers: Patterns of the names of the blocks that stay.

    Raises:
        PriorError: A pattern matches none, or there is no pattern.
    """
    if not layers:
        raise PriorError("layers is empty; give patterns of block names, or None for all")
    sound = [entry for entry in _blocks(config) if not malformed(entry)]
    for pattern in layers:
        if not any(fnmatchcase(entry["name"], pattern) for entry in sound):
            names = ", ".join(entry["name"] for entry in sound)
            raise PriorError(f"no block is called '{pattern}'; there are {names}")
    others = [e for e in sound if not any(fnmatchcase(e["name"], pattern) for pattern in layers)]
    kept = [entry for entry in config["blocks"] if entry not in others]
    ignored = config.get("ignored")
    if is_list_of_names(ignored):
        ignored = sorted({*ignored, *(name for entry in others for name in entry["parameters"])})
    return {**config, "blocks": kept, "ignored": ignored}


def parameters_of(config: Mapping[str, Any]) -> set[str]:
    """Return the names of the parameters that the blocks cover.

    Args:
        config: The values; untrusted.
    """
    fields = [entry.get("parameters") for entry in _blocks(config)]
    return {name for field in fields for name in strings(field, keys=True)}


def tensors_of(config: Mapping[str, Any]) -> set[str]:
    """Return the names of the tensors that the blocks and their anchors need.

    Args:
        config: The values; untrusted.
    """
    names = {ANCHOR + name for name in parameters_of(config)}
    for entry in _blocks(config):
        names |= strings(entry.get("tensors"))
        names |= {entry[part] for part in ROWS if isinstance(entry.get(part), str)}
    return names


def _blocks(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    entries = config.get("blocks")
    return [e for e in entries if isinstance(e, dict)] if isinstance(entries, list) else []


def malformed(entry: Any) -> list[str]:
    """Say which fields of a block's description are not of the expected kind.

    Args:
        entry: The description.
    """
    if not isinstance(entry, dict):
        return [f"it is {short(entry)}, expected an object"]
    fields = {
        "name": (_is_name, "a name"),
        "layout": (_is_layout, f"one of {', '.join(Layout)}"),
        "parameters": (_is_shapes, "shapes by name"),
        "operator": (_is_name, "a name"),
        "tensors": (_is_names, "names by name"),
        "inputs": (_is_name_or_none, "a name or null"),
        "input_examples": (_is_name_or_none, "a name or null"),
    }
    return [
        f"field {name} is {short(entry.get(name))}, expected {what}"
        for name, (holds, what) in fields.items()
        if not holds(entry.get(name))
    ]


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


def is_list_of_names(value: Any) -> TypeGuard[list[str]]:
    """Whether a field holds nothing but names.

    Args:
        value: The field.
    """
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _is_name_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _is_layout(value: Any) -> bool:
    return isinstance(value, str) and value in set(Layout)


def _is_names(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value.values())


def _is_shapes(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
        for shape in value.values()
    )


def strings(value: Any, *, keys: bool = False) -> set[str]:
    """Return the strings in a field that may be malformed.

    Args:
        value: The field; names by name, or anything.
        keys: Whether to return the keys instead of the values.
    """
    if not isinstance(value, dict):
        return set()
    return {item for item in (value if keys else value.values()) if isinstance(item, str)}
