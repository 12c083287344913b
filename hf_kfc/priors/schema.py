"""What a prior's description may hold, as strict dataclasses: anybody may have written it.

The types of the fields are checked by :func:`huggingface_hub.dataclasses.strict`, which reads them
when the class is made: no ``from __future__ import annotations`` here.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, make_dataclass
from fnmatch import fnmatchcase
from reprlib import repr as short
from typing import Any, TypeVar

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError

from ..curvature import Layout
from ..errors import PriorError

__all__ = [
    "ANCHOR",
    "COUNT",
    "NUMBER",
    "ROWS",
    "SIZE",
    "AnchorEntry",
    "BlockEntry",
    "FileEntry",
    "Outline",
    "between",
    "checked",
    "entries_of",
    "part_of",
    "problems_of",
    "read",
    "tensors_of",
]

ANCHOR = "anchor/"
"""What the names of the anchor's tensors begin with."""
ROWS = ("inputs", "input_examples")
"""The fields of an embedding's block that may name a tensor each."""

T = TypeVar("T")


# --- Ranges ---------------------------------------------------------------------------------------


def checked(expected: str, *checks: Callable[[Any], object]) -> dict[str, Any]:
    """Return the metadata of a strict dataclass's field.

    Args:
        expected: What it holds, in words.
        *checks: They raise ValueError on a value out of range.
    """
    return {"expected": expected, "validator": list(checks)}


def between(low: float, high: float) -> Callable[[Any], None]:
    """Return a check that a number, or each in a list or mapping, is in a range; None may stand.

    Args:
        low: The least.
        high: The most.
    """

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


# --- The description's objects --------------------------------------------------------------------


@dataclass(frozen=True)
class BlockEntry:
    """One block: its parameters, and which tensors are its curvature's."""

    name: str = field(metadata=checked("a name"))
    layout: str = field(metadata=checked(f"one of {', '.join(Layout)}", Layout))
    parameters: dict[str, list[int]] = field(metadata=checked("shapes by name", COUNT))
    operator: str = field(metadata=checked("a name"))
    tensors: dict[str, str] = field(metadata=checked("names by name"))
    inputs: str | None = field(default=None, metadata=checked("a name or null"))
    input_examples: str | None = field(default=None, metadata=checked("a name or null"))

    @property
    def rows(self) -> dict[str, str]:
        """The tensors that tell of an embedding's rows, by field."""
        named = {part: getattr(self, part) for part in ROWS}
        return {part: key for part, key in named.items() if key is not None}


@dataclass(frozen=True)
class FileEntry:
    """One file of tensors: its size, its sum and what it holds."""

    bytes: int = field(metadata=checked("a count", COUNT))
    sha256: str = field(metadata=checked("a sum"))
    tensors: list[str] = field(metadata=checked("a list of names"))


@dataclass(frozen=True)
class AnchorEntry:
    """The model on the Hub whose parameters are the anchor."""

    repo_id: str = field(metadata=checked("a name"))
    revision: str = field(metadata=checked("a commit's full hash"))
    files: dict[str, dict[str, Any]] = field(metadata=checked("files by name"))


@dataclass(frozen=True)
class Outline:
    """What the description of a prior says beside its files, its provenance and its anchor."""

    num_curvature_examples: int = field(metadata=checked("a count", COUNT))
    ignored: list[str] = field(metadata=checked("a list of names"))
    blocks: list[Any] = field(metadata=checked("a list"))


# --- Reading them ---------------------------------------------------------------------------------


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


def entries_of(config: Mapping[str, Any]) -> tuple[list[BlockEntry], list[str]]:
    """Read the blocks of a description.

    Args:
        config: The values; untrusted.

    Returns:
        Those that are sound, and one phrase for each thing that is wrong with the others.
    """
    blocks = config.get("blocks")
    found = [
        read(BlockEntry, values, f"block {n}")
        for n, values in enumerate(blocks if isinstance(blocks, list) else [])
    ]
    problems = [phrase for _, wrong in found for phrase in wrong]
    return [entry for entry, _ in found if entry is not None], problems


def part_of(config: Mapping[str, Any], layers: str | Sequence[str]) -> dict[str, Any]:
    """Leave out of a description all blocks but some; their parameters are ignored.

    Args:
        config: The values; untrusted.
        layers: Patterns of the names of the blocks that stay.

    Raises:
        PriorError: A pattern matches none, there is no pattern, or the description is malformed.
    """
    if not layers:
        raise PriorError("layers is empty; give patterns of block names, or None for all")
    layers = [layers] if isinstance(layers, str) else layers
    entries, problems = entries_of(config)
    outline, wrong = read(Outline, config, "the description")
    if outline is None or problems:
        raise PriorError("; ".join([*wrong, *problems]))
    for pattern in layers:
        if not any(fnmatchcase(entry.name, pattern) for entry in entries):
            names = ", ".join(entry.name for entry in entries)
            raise PriorError(f"no block is called '{pattern}'; there are {names}")
    stay = [any(fnmatchcase(entry.name, pattern) for pattern in layers) for entry in entries]
    ignored = set(outline.ignored).union(
        *(entry.parameters for entry, stays in zip(entries, stay, strict=True) if not stays)
    )
    blocks = [values for values, stays in zip(outline.blocks, stay, strict=True) if stays]
    return {**config, "blocks": blocks, "ignored": sorted(ignored)}


def tensors_of(config: Mapping[str, Any]) -> set[str]:
    """Return the names of the tensors that the sound blocks and their anchors need.

    Args:
        config: The values; untrusted.
    """
    entries, _ = entries_of(config)
    anchors = {ANCHOR + name for entry in entries for name in entry.parameters}
    return anchors.union(*((*e.tensors.values(), *e.rows.values()) for e in entries))
