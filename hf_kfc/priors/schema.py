"""What a prior's description may hold, as strict dataclasses: anybody may have written it.

The types of the fields are checked by :mod:`hf_kfc.schema`, which reads them when they are first
needed: no ``from __future__ import annotations`` here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from reprlib import repr as short
from typing import Any

from ..curvature import Layout
from ..errors import PriorError
from ..schema import COUNT, checked, read

__all__ = [
    "ANCHOR",
    "ROWS",
    "AnchorEntry",
    "BlockEntry",
    "FileEntry",
    "Outline",
    "as_patterns",
    "entries_of",
    "is_meant",
    "part_of",
    "tensors_of",
]

ANCHOR = "anchor/"
"""What the names of the anchor's tensors begin with."""
ROWS = ("inputs", "input_examples")
"""The fields of an embedding's block that may name a tensor each."""

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


def entries_of(config: Mapping[str, Any]) -> tuple[list[BlockEntry], list[str]]:
    """Return the sound blocks of a description, and a phrase for each thing wrong with others."""
    blocks = config.get("blocks")
    found = [
        read(BlockEntry, values, f"block {n}")
        for n, values in enumerate(blocks if isinstance(blocks, list) else [])
    ]
    problems = [phrase for _, wrong in found for phrase in wrong]
    return [entry for entry, _ in found if entry is not None], problems


def part_of(config: Mapping[str, Any], layers: str | Sequence[str]) -> dict[str, Any]:
    """Leave out of a description all blocks but some; their parameters are ignored.

    So are the probes: a part of a prior is read for a model that differs in the rest, which decides
    something else.

    Raises:
        PriorError: A pattern matches none, there is no pattern, or the description is malformed.
    """
    layers = as_patterns(layers, "layers")
    if not layers:
        raise PriorError("layers is empty; give patterns of block names, or None for all")
    entries, problems = entries_of(config)
    outline, wrong = read(Outline, config, "the description")
    if outline is None or problems:
        raise PriorError("; ".join([*wrong, *problems]))
    for pattern in layers:
        if not any(is_meant(entry.name, pattern) for entry in entries):
            names = ", ".join(entry.name for entry in entries)
            raise PriorError(f"no block is called '{pattern}'; there are {names}")
    stay = [any(is_meant(entry.name, pattern) for pattern in layers) for entry in entries]
    ignored = set(outline.ignored).union(
        *(entry.parameters for entry, stays in zip(entries, stay, strict=True) if not stays)
    )
    blocks = [values for values, stays in zip(outline.blocks, stay, strict=True) if stays]
    part = {**config, "blocks": blocks, "ignored": sorted(ignored)}
    return part | {"probes": None} if "probes" in part else part


def as_patterns(given: str | Sequence[str], what: str) -> list[str]:
    """Return patterns of names as a list, of one or several.

    Raises:
        PriorError: It is something else.
    """
    names: Any = [given] if isinstance(given, str) or not isinstance(given, Iterable) else given
    patterns = list(names)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise PriorError(f"{what} is {short(given)}; give patterns of block names")
    return patterns


def is_meant(name: str, pattern: str) -> bool:
    """Whether a pattern means a block or a parameter: its name, or a module that it is in."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def tensors_of(config: Mapping[str, Any]) -> set[str]:
    """Return the names of the tensors that the sound blocks and their anchors need."""
    entries, _ = entries_of(config)
    anchors = {ANCHOR + name for entry in entries for name in entry.parameters}
    return anchors.union(*((*e.tensors.values(), *e.rows.values()) for e in entries))
