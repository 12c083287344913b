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
    "ROWS",
    "AnchorEntry",
    "BlockEntry",
    "FileEntry",
    "Outline",
    "checked",
    "count",
    "counts",
    "number",
    "numbers",
    "part_of",
    "problems_of",
    "read",
    "size",
    "sizes",
    "tensors_of",
]

ANCHOR = "anchor/"
"""What the names of the anchor's tensors begin with."""
ROWS = ("inputs", "input_examples")
"""The fields of an embedding's block that may name a tensor each."""

_MOST = 2**53  # examples, tokens, bytes: what float64 counts without gaps
T = TypeVar("T")


# --- Ranges ---------------------------------------------------------------------------------------


def checked(expected: str, *checks: Callable[[Any], None]) -> dict[str, Any]:
    """Return the metadata of a strict dataclass's field.

    Args:
        expected: What it holds, in words.
        *checks: They raise ValueError on a value out of range.
    """
    return {"expected": expected, "validator": list(checks)}


def count(value: int | None) -> None:
    """Refuse what is no number of examples, tokens or bytes."""
    if value is not None and not 0 <= value < _MOST:
        raise ValueError


def counts(values: Mapping[str, int]) -> None:
    """Refuse a mapping with what is no count."""
    for value in values.values():
        count(value)


def number(value: float) -> None:
    """Refuse NaN, infinity and integers that no float holds."""
    if not -sys.float_info.max <= value <= sys.float_info.max:
        raise ValueError


def numbers(values: Mapping[str, float]) -> None:
    """Refuse a mapping with what is no finite number."""
    for value in values.values():
        number(value)


def size(value: float | None) -> None:
    """Refuse what is negative or not finite."""
    if value is not None and not 0 <= value <= sys.float_info.max:
        raise ValueError


def sizes(values: Mapping[str, float]) -> None:
    """Refuse a mapping with what is negative or not finite."""
    for value in values.values():
        size(value)


def _layout(value: str) -> None:
    Layout(value)


def _shapes(values: Mapping[str, Sequence[int]]) -> None:
    for shape in values.values():
        for extent in shape:
            count(extent)


# --- The description's objects --------------------------------------------------------------------


@dataclass(frozen=True)
class BlockEntry:
    """One block: its parameters, and which tensors are its curvature's."""

    name: str = field(metadata=checked("a name"))
    layout: str = field(metadata=checked(f"one of {', '.join(Layout)}", _layout))
    parameters: dict[str, list[int]] = field(metadata=checked("shapes by name", _shapes))
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

    bytes: int = field(metadata=checked("a count", count))
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

    num_curvature_examples: int = field(metadata=checked("a count", count))
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


def part_of(config: Mapping[str, Any], layers: Sequence[str]) -> dict[str, Any]:
    """Leave out of a description all blocks but some; their parameters are ignored.

    Args:
        config: The values; untrusted.
        layers: Patterns of the names of the blocks that stay.

    Raises:
        PriorError: A pattern matches none, or there is no pattern.
    """
    if not layers:
        raise PriorError("layers is empty; give patterns of block names, or None for all")
    kept, ignored = [], set[str]()
    missed = dict.fromkeys(layers)
    names = []
    for values in _blocks(config):
        entry, _ = read(BlockEntry, values, "block")
        matched = [p for p in layers if entry is None or fnmatchcase(entry.name, p)]
        if matched:
            kept.append(values)
        if entry is not None:
            names.append(entry.name)
            ignored |= set() if matched else entry.parameters.keys()
            for pattern in matched:
                missed.pop(pattern, None)
    if missed:
        raise PriorError(f"no block is called '{next(iter(missed))}'; there are {', '.join(names)}")
    outline, _ = read(Outline, config, "the description")
    already = config.get("ignored") if outline is None else sorted({*outline.ignored, *ignored})
    return {**config, "blocks": kept, "ignored": already}


def tensors_of(config: Mapping[str, Any]) -> set[str]:
    """Return the names of the tensors that the blocks and their anchors need.

    Args:
        config: The values; untrusted. Malformed blocks need none.
    """
    names = set[str]()
    for values in _blocks(config):
        entry, _ = read(BlockEntry, values, "block")
        if entry is not None:
            names |= {ANCHOR + name for name in entry.parameters}
            names |= {*entry.tensors.values(), *entry.rows.values()}
    return names


def _blocks(config: Mapping[str, Any]) -> list[Any]:
    blocks = config.get("blocks")
    return blocks if isinstance(blocks, list) else []
