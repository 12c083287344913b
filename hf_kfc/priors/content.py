"""A prior's parts as JSON values and named tensors, and what can be wrong with them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from reprlib import repr as short
from typing import Any

import torch
from torch import Tensor

from ..curvature import OPERATORS, Block, Curvature, Identity, Layout, Operator
from ..errors import PriorError
from .provenance import Provenance

__all__ = ["fingerprint_of", "from_content", "misfits_of", "to_content"]

_ANCHOR = "anchor/"
_CURVATURE = "curvature/"

Parts = tuple[dict[str, Tensor], Curvature, Provenance]
"""Anchor, curvature and provenance."""


def to_content(
    anchor: Mapping[str, Tensor], curvature: Curvature, provenance: Provenance
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Turn a prior's parts into JSON values and float32 tensors on the CPU.

    Returns:
        The values, and the tensors by name; no two share memory.
    """
    tensors = {_ANCHOR + name: value for name, value in anchor.items()}
    keys: dict[int, str] = {}  # layers that read the same inputs store one A
    blocks = []
    for block in curvature.blocks:
        names = {}
        for part, tensor in block.operator.state().items():
            names[part] = keys.setdefault(id(tensor), f"{_CURVATURE}{block.name}/{part}")
            tensors[names[part]] = tensor
        blocks.append(
            {
                "name": block.name,
                "layout": str(block.layout),
                "parameters": {name: list(shape) for name, shape in block.shapes.items()},
                "operator": block.operator.kind,
                "tensors": names,
            }
        )
    config = {
        "provenance": provenance.to_dict(),
        "num_curvature_examples": curvature.num_examples,
        "ignored": list(curvature.ignored),
        "blocks": blocks,
    }
    return config, _stored(tensors)


def from_content(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], damages: Sequence[str] = ()
) -> Parts:
    """Undo :func:`to_content`.

    Args:
        config: The values.
        tensors: The tensors by name.
        damages: Why tensors may be missing; if there are any, only what else is wrong is added.

    Raises:
        PriorError: There are damages, or the content is malformed; all is listed, including what
            :func:`misfits_of` finds in the rest.
    """
    problems = [
        *damages,
        *(
            f"tensor {name} is {value.dtype}, expected torch.float32"
            for name, value in tensors.items()
            if value.dtype != torch.float32
        ),
    ]
    entries = config.get("blocks")
    if not isinstance(entries, list):
        problems.append(f"field blocks is {short(entries)}, expected a list")
        entries = []
    blocks, used, unclear = [], set[str](), set[str]()
    for index, entry in enumerate(entries):
        if wrong := _malformed(entry):
            problems += [f"block {index}: {phrase}" for phrase in wrong]
            fields = entry if isinstance(entry, dict) else {}
            unclear |= _strings(fields.get("parameters"), keys=True)
            used |= _strings(fields.get("tensors"))
        else:
            operator, wrong = _operator(entry, tensors, incomplete=bool(damages))
            problems += [f"{entry['name']}: {phrase}" for phrase in wrong]
            shapes = {name: tuple(shape) for name, shape in entry["parameters"].items()}
            blocks.append(Block(entry["name"], Layout(entry["layout"]), shapes, operator))
            used |= set(entry["tensors"].values())
    problems += [
        f"tensor {name} belongs to no block"
        for name in tensors
        if name not in used and not name.startswith(_ANCHOR)
    ]
    examples, ignored = config.get("num_curvature_examples"), config.get("ignored")
    if type(examples) is not int or examples < 0:
        problems.append(f"field num_curvature_examples is {short(examples)}, expected a count")
        examples = 0
    if not isinstance(ignored, list) or not all(isinstance(name, str) for name in ignored):
        problems.append(f"field ignored is {short(ignored)}, expected a list of names")
        ignored = []
    try:
        provenance = Provenance.from_dict(config.get("provenance"))
    except PriorError as error:
        problems.append(str(error))
        provenance = Provenance("")
    curvature = Curvature(tuple(blocks), examples, tuple(ignored))
    anchor = {
        name.removeprefix(_ANCHOR): value
        for name, value in tensors.items()
        if name.startswith(_ANCHOR)
    }
    if problems:
        judged = {
            # what is said above is not said again: wrong dtypes, parameters of malformed blocks
            name: value if value.dtype == torch.float32 else torch.zeros(()).expand(value.shape)
            for name, value in anchor.items()
            if name not in unclear or name in curvature.parameters
        }
        problems += misfits_of(judged, curvature, provenance, incomplete=bool(damages))
        raise PriorError("; ".join(problems))
    return anchor, curvature, provenance


def fingerprint_of(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the blocks and tensors that :func:`to_content` made."""
    names = sorted(tensors)
    layout = [config["blocks"], [[name, list(tensors[name].shape)] for name in names]]
    digest = hashlib.sha256(json.dumps(layout).encode())
    for name in names:
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def misfits_of(
    anchor: Mapping[str, Tensor],
    curvature: Curvature,
    provenance: Provenance,
    *,
    incomplete: bool = False,
) -> list[str]:
    """Say what is wrong with a prior's parts, one phrase per misfit.

    Args:
        anchor: Parameters by name.
        curvature: Should cover exactly the anchor.
        provenance: Where they come from.
        incomplete: Whether missing parts are known about.
    """
    shapes = curvature.parameters
    misfits = provenance.misfits()
    if not (shapes or incomplete or curvature.blocks):
        misfits.append("no parameter is covered")
    if not incomplete:
        misfits += [f"the anchor of {name} is missing" for name in shapes if name not in anchor]
    misfits += [f"the anchor {name} has no curvature" for name in anchor if name not in shapes]
    for name, value in anchor.items():
        if name in shapes and tuple(value.shape) != shapes[name]:
            found, expected = list(value.shape), list(shapes[name])
            misfits.append(f"the anchor {name} has shape {found}, expected {expected}")
        misfits += _bad_values(f"the anchor {name}", value)
    owners = Counter(name for block in curvature.blocks for name in block.shapes)
    misfits += [f"parameter {name} stands in two blocks" for name, n in owners.items() if n > 1]
    names = Counter(block.name for block in curvature.blocks)
    misfits += [f"two blocks have the name '{name}'" for name, n in names.items() if n > 1]
    for block in curvature.blocks:
        wrong = _shape_misfits(block) or _operator_misfits(block)
        misfits += [f"{block.name}: {phrase}" for phrase in wrong]
    return misfits


def _shape_misfits(block: Block) -> list[str]:
    """Say why the parameters cannot be joined to a matrix."""
    if len(block.shapes) not in (1, 2):
        return [f"{len(block.shapes)} parameters do not make a weight and a bias"]
    (name, weight), *bias = block.shapes.items()
    if block.layout is not Layout.ELEMENTWISE and (
        len(weight) < 2 or prod(weight) == 0 or (block.layout is Layout.IN_OUT and len(weight) > 2)
    ):
        return [f"{name} of shape {list(weight)} has no layout '{block.layout}'"]
    rows = block.shape[0]
    return [
        f"{name} has shape {list(shape)}, expected [{rows}]"
        for name, shape in bias
        if prod(shape) != rows
    ]


def _operator_misfits(block: Block) -> list[str]:
    bad = {part: _bad_values(part, value) for part, value in block.operator.state().items()}
    return [phrase for phrases in bad.values() for phrase in phrases] + [
        phrase
        for phrase in block.operator.mismatch(block.shape)
        if "shape" in phrase or not bad[phrase.split()[0]]
    ]


def _bad_values(name: str, value: Tensor) -> list[str]:
    if not value.is_floating_point():
        return [f"{name} is {value.dtype}, expected a floating-point type"]
    if value.numel() == 0 or bool(value.isfinite().all()):
        return []
    return [f"{name} has NaN or infinite values"]


def _malformed(entry: Any) -> list[str]:
    """Say which fields of a block's description are not of the expected kind."""
    if not isinstance(entry, dict):
        return [f"it is {short(entry)}, expected an object"]
    fields = {
        "name": (_is_name, "a name"),
        "layout": (_is_layout, f"one of {', '.join(Layout)}"),
        "parameters": (_is_shapes, "shapes by name"),
        "operator": (_is_name, "a name"),
        "tensors": (_is_names, "names by name"),
    }
    return [
        f"field {name} is {short(entry.get(name))}, expected {what}"
        for name, (holds, what) in fields.items()
        if not holds(entry.get(name))
    ]


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


def _is_layout(value: Any) -> bool:
    return isinstance(value, str) and value in set(Layout)


def _is_names(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for name in value.values())


def _is_shapes(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
        for shape in value.values()
    )


def _strings(value: Any, *, keys: bool = False) -> set[str]:
    """The strings in a field that may be malformed."""
    if not isinstance(value, dict):
        return set()
    return {item for item in (value if keys else value.values()) if isinstance(item, str)}


def _operator(
    entry: Mapping[str, Any], tensors: Mapping[str, Tensor], *, incomplete: bool
) -> tuple[Operator, list[str]]:
    """Build a block's operator; a stand-in that fits anything, with the reasons, if it cannot."""
    keys: dict[str, str] = entry["tensors"]
    missing = [key for key in keys.values() if key not in tensors]
    problems = [] if incomplete else [f"tensor {key} is missing" for key in missing]
    kind = OPERATORS.get(entry["operator"])
    if kind is None:
        problems.append(
            f"operator '{entry['operator']}' is unknown, expected one of {', '.join(OPERATORS)}"
        )
    elif set(keys) != set(kind.tensor_names):
        found, expected = ", ".join(sorted(keys)), ", ".join(kind.tensor_names)
        problems.append(f"operator '{kind.kind}' has tensors {found}, expected {expected}")
    elif not missing and all(tensors[key].dtype == torch.float32 for key in keys.values()):
        return kind.from_state({part: tensors[key] for part, key in keys.items()}), []
    return Identity(), problems


def _stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert to what is stored; safetensors takes no two tensors that share memory."""
    stored, memories = {}, set[int]()
    for name, tensor in tensors.items():
        value = tensor.detach().to("cpu", torch.float32).contiguous()
        memory = value.untyped_storage()
        if memory.data_ptr() in memories or memory.nbytes() != value.nbytes:
            value = value.clone()
        memories.add(value.untyped_storage().data_ptr())
        stored[name] = value
    return stored
