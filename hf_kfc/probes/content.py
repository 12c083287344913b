"""Probes as JSON values and named tensors, and what can be wrong with them.

The types of the entries' fields are checked when they are read: no ``from __future__ import
annotations``.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..curvature import Family
from ..errors import ProbeError
from ..schema import COUNT, between, checked, read
from .outputs import Cache
from .rows import Column, Rows

__all__ = ["Source", "digest_of", "fingerprint_of", "from_content", "to_content"]

_DEPTH = 8
_DIGEST = re.compile(r"[0-9a-f]{64}", re.ASCII)


def _settings(values: dict[str, Any]) -> None:
    between(-(2**63), 2**63)([v for v in values.values() if not isinstance(v, str)])


def _digests(values: dict[str, str]) -> None:
    if not all(_DIGEST.fullmatch(value) for value in values.values()):
        raise ValueError


def _family(name: str) -> None:
    if name not in Family.__members__:
        raise ValueError


@dataclass(frozen=True)
class Source:
    """Where probes come from, and what was left out.

    Args:
        name: ``"dataset"``, ``"ontology"``, ``"tokens"``, ``"uniform tokens"``, ``"generated"``,
            ``"new task"``, or a name that the user gave.
        model: Name or path of the model whose outputs are kept.
        settings: How they were made.
        counts: How many were looked at, kept and dropped, by reason.
    """

    name: str = field(metadata=checked("a name"))
    model: str = field(default="", metadata=checked("a name"))
    settings: dict[str, int | float | str] = field(
        default_factory=dict, metadata=checked("numbers and words by name", _settings)
    )
    counts: dict[str, int] = field(default_factory=dict, metadata=checked("counts by name", COUNT))


@dataclass(frozen=True)
class ColumnEntry:
    """One column of the inputs."""

    depth: int = field(metadata=checked(f"a number from 0 to {_DEPTH}", between(0, _DEPTH)))
    are_tensors: bool = field(metadata=checked("true or false"))


@dataclass(frozen=True)
class ProbesEntry:
    """What a prior's description says of its probes."""

    family: str = field(metadata=checked(f"one of {', '.join(f.name for f in Family)}", _family))
    classes: int = field(metadata=checked("a count", COUNT))
    columns: dict[str, dict[str, Any]] = field(metadata=checked("columns by name"))
    source: dict[str, Any] = field(metadata=checked("an object"))
    anchor_digests: dict[str, str] = field(metadata=checked("sums by name", _digests))


def to_content(
    rows: Rows, cache: Cache, source: Source, anchor_digests: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Turn the parts of probes into JSON values and tensors, of which no two share memory."""
    columns, tensors = {}, dict[str, Tensor]()
    for name, column in rows.columns.items():
        columns[name] = {"depth": len(column.lengths), "are_tensors": column.are_tensors}
        tensors[f"rows/{name}/values"] = column.values
        for level, lengths in enumerate(column.lengths):
            tensors[f"rows/{name}/lengths/{level}"] = lengths
    tensors |= {"decisions": cache.decisions, "sizes": cache.sizes}
    tensors["scores"] = cache.scores.float()
    if cache.indices is not None and cache.rest is not None:
        tensors |= {"indices": cache.indices, "rest": cache.rest.float()}
    values = {
        "family": cache.family.name,
        "classes": cache.classes,
        "columns": columns,
        "source": asdict(source),
        "anchor_digests": dict(anchor_digests),
    }
    return values, {name: value.clone().contiguous() for name, value in tensors.items()}


def from_content(
    values: Any, tensors: Mapping[str, Tensor]
) -> tuple[Rows, Cache, Source, dict[str, str]]:
    """Undo :func:`to_content`; what it reads may be anybody's.

    Raises:
        ProbeError: Something is missing, malformed, or does not fit the rest; all is listed.
    """
    entry, problems = read(ProbesEntry, values, "the probes")
    columns, due = dict[str, ColumnEntry](), {"decisions", "sizes", "scores"}
    for name, column_values in entry.columns.items() if entry else ():
        column, wrong = read(ColumnEntry, column_values, f"column {name!r} of the probes")
        problems += wrong
        if not name.isidentifier():
            problems.append(f"{name!r} is no name of a probes' column")
        if column is not None:
            columns[name] = column
            due |= {f"rows/{name}/lengths/{level}" for level in range(column.depth)}
            due.add(f"rows/{name}/values")
    source, wrong = read(Source, entry.source if entry else {"name": ""}, "the probes' source")
    problems += wrong
    due |= {"indices", "rest"} if entry and entry.classes else set()
    if not problems:
        problems += [f"the probes' {name} is missing" for name in sorted(due - tensors.keys())]
        problems += [f"the probes have no {name}" for name in sorted(tensors.keys() - due)]
    if problems or entry is None or source is None or not columns:
        raise ProbeError("; ".join(problems) or "the probes have no column")
    rows = Rows(
        {
            name: Column(
                tensors[f"rows/{name}/values"],
                tuple(tensors[f"rows/{name}/lengths/{n}"] for n in range(column.depth)),
                column.are_tensors,
            )
            for name, column in columns.items()
        }
    )
    cache = Cache(
        tensors["scores"],
        tensors["decisions"],
        tensors["sizes"],
        tensors.get("indices"),
        tensors.get("rest"),
        Family[entry.family],
        entry.classes,
    )
    count = cache.decisions.numel()
    for name, own in rows.columns.items():
        problems += [f"column {name} of the probes {phrase}" for phrase in own.problems(count)]
    problems += [f"the probes' {phrase}" for phrase in cache.problems(count)]
    if problems:
        raise ProbeError("; ".join(problems))
    return rows, cache, source, entry.anchor_digests


def fingerprint_of(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the rows and the outputs in a content."""
    layout = [values["family"], values["classes"], values["columns"]]
    shapes = [[name, str(t.dtype), list(t.shape)] for name, t in sorted(tensors.items())]
    digest = hashlib.sha256(json.dumps([layout, shapes], sort_keys=True).encode())
    for _, tensor in sorted(tensors.items()):
        digest.update(_bytes_of(tensor))
    return digest.hexdigest()


def digest_of(parameter: Tensor) -> str:
    """Return the SHA-256 of a tensor in float32.

    Args:
        parameter: The tensor.
    """
    return hashlib.sha256(_bytes_of(parameter.detach().to("cpu", torch.float32))).hexdigest()


def _bytes_of(tensor: Tensor) -> Any:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
