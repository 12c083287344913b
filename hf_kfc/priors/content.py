"""A prior's parts as JSON values and named tensors, and what can be wrong with them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from reprlib import repr as short
from typing import Any

import torch
from torch import Tensor

from ..curvature import OPERATORS, Block, Curvature, Identity, Layout, Operator
from ..errors import PriorError
from .description import ANCHOR, ROWS, is_list_of_names, malformed, strings
from .misfits import misfits_of, row_misfits
from .provenance import Provenance

__all__ = ["Parts", "fingerprint_of", "from_content", "stored_bytes", "to_content"]

_CURVATURE = "curvature/"
_OPERATOR = (torch.float32, torch.bfloat16)

Parts = tuple[dict[str, Tensor], Curvature, Provenance]
"""Anchor, curvature and provenance."""


def to_content(
    anchor: Mapping[str, Tensor], curvature: Curvature, provenance: Provenance
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Turn a prior's parts into JSON values and tensors on the CPU.

    Curvature in bfloat16 stays so; all other numbers are float32, and those of tokens int64.

    Returns:
        The values, and the tensors by name; no two share memory.
    """
    tensors = {ANCHOR + name: value for name, value in anchor.items()}
    keys: dict[int, str] = {}  # layers that read the same inputs store one A
    blocks = []
    for block in curvature.blocks:
        names = {}
        for part, tensor in block.operator.state().items():
            names[part] = keys.setdefault(id(tensor), f"{_CURVATURE}{block.name}/{part}")
            tensors[names[part]] = tensor
        rows: dict[str, str | None] = dict.fromkeys(ROWS)
        for part in ROWS:
            if (tensor := getattr(block, part)) is not None:
                rows[part] = key = f"{_CURVATURE}{block.name}/{part}"
                tensors[key] = tensor
        blocks.append(
            {
                "name": block.name,
                "layout": str(block.layout),
                "parameters": {name: list(shape) for name, shape in block.shapes.items()},
                "operator": block.operator.kind,
                "tensors": names,
                **rows,
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
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    damages: Sequence[str] = (),
    *,
    model: Mapping[str, Tensor] | None = None,
) -> Parts:
    """Undo :func:`to_content`.

    Args:
        config: The values.
        tensors: The tensors by name.
        model: Parameters to take the anchors from that are not among the tensors.
        damages: Why tensors may be missing; if there are any, only what else is wrong is added.

    Raises:
        PriorError: There are damages, or the content is malformed; all is listed, including what
            :func:`misfits_of` finds in the rest.
    """
    problems = list(damages)
    problems += [
        f"tensor {name} is {value.dtype}, expected {' or '.join(map(str, _dtypes(name)))}"
        for name, value in tensors.items()
        if value.dtype not in _dtypes(name)
    ]
    blocks, unclear = _read_blocks(config, tensors, problems, incomplete=bool(damages))
    examples, ignored, provenance = _read_fields(config, problems)
    curvature = Curvature(tuple(blocks), examples, tuple(ignored))
    anchor = {
        name.removeprefix(ANCHOR): value
        for name, value in tensors.items()
        if name.startswith(ANCHOR)
    }
    anchor = _covered(blocks, model or {}) | anchor
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


def _read_blocks(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    problems: list[str],
    *,
    incomplete: bool,
) -> tuple[list[Block], set[str]]:
    """Read the blocks, adding to the problems; and name the parameters of malformed ones."""
    entries = config.get("blocks")
    if not isinstance(entries, list):
        problems.append(f"field blocks is {short(entries)}, expected a list")
        entries = []
    blocks, used, unclear = [], set[str | None](), set[str]()
    for index, entry in enumerate(entries):
        if wrong := malformed(entry):
            problems += [f"block {index}: {phrase}" for phrase in wrong]
            fields = entry if isinstance(entry, dict) else {}
            unclear |= strings(fields.get("parameters"), keys=True)
            used |= strings(fields.get("tensors"))
        else:
            operator, wrong = _operator(entry, tensors, incomplete=incomplete)
            rows, wrong_rows = _rows(entry, tensors, incomplete=incomplete)
            problems += [f"{entry['name']}: {phrase}" for phrase in (*wrong, *wrong_rows)]
            shapes = {name: tuple(shape) for name, shape in entry["parameters"].items()}
            blocks.append(Block(entry["name"], Layout(entry["layout"]), shapes, operator, **rows))
            used |= {*entry["tensors"].values(), *map(entry.get, ROWS)}
    problems += [
        f"tensor {name} belongs to no block"
        for name in tensors
        if name not in used and not name.startswith(ANCHOR)
    ]
    return blocks, unclear


def _covered(blocks: Sequence[Block], model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the anchors out of a model's parameters; what does not fit is judged as it is."""
    anchor: dict[str, Tensor] = {}
    for block in blocks:
        own = {name: model[name].float() for name in block.shapes if name in model}
        whole = {name: tuple(value.shape) for name, value in own.items()} == block.shapes
        if block.inputs is not None and whole and not row_misfits(block):
            own = block.covered(own)
        anchor |= own
    return anchor


def _read_fields(
    config: Mapping[str, Any], problems: list[str]
) -> tuple[int, list[str], Provenance]:
    """Read the number of examples, the ignored parameters and the provenance."""
    examples, ignored = config.get("num_curvature_examples"), config.get("ignored")
    if type(examples) is not int or examples < 0:
        problems.append(f"field num_curvature_examples is {short(examples)}, expected a count")
        examples = 0
    if not is_list_of_names(ignored):
        problems.append(f"field ignored is {short(ignored)}, expected a list of names")
        ignored = []
    try:
        provenance = Provenance.from_dict(config.get("provenance"))
    except PriorError as error:
        problems.append(str(error))
        provenance = Provenance("")
    return examples, ignored, provenance


def fingerprint_of(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the blocks and tensors that :func:`to_content` made."""
    names = sorted(tensors)
    layout = [config["blocks"], [[name, list(tensors[name].shape)] for name in names]]
    digest = hashlib.sha256(json.dumps(layout).encode())
    for name in names:
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


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
    elif strange := [key for key in keys.values() if _dtypes(key) != _OPERATOR]:
        problems += [f"tensor {key} is no part of an operator" for key in strange]
    elif not missing and all(tensors[key].dtype in _OPERATOR for key in keys.values()):
        return kind.from_state({part: tensors[key] for part, key in keys.items()}), []
    return Identity(), problems


def _rows(
    entry: Mapping[str, Any], tensors: Mapping[str, Tensor], *, incomplete: bool
) -> tuple[dict[str, Tensor], list[str]]:
    """Find which tokens an embedding's block covers, and in how many examples they were seen."""
    keys = {part: entry[part] for part in ROWS if entry.get(part) is not None}
    missing = [key for key in keys.values() if key not in tensors]
    problems = [] if incomplete else [f"tensor {key} is missing" for key in missing]
    right = {
        part: tensors[key]
        for part, key in keys.items()
        if key in tensors and tensors[key].dtype in _dtypes(_CURVATURE + part)
    }
    return right, problems


def stored_bytes(name: str, tensor: Tensor) -> int:
    """Return how many bytes a tensor takes in a prior's files.

    Args:
        name: ``anchor/<parameter>`` or ``curvature/<part>``.
        tensor: As the prior holds it.
    """
    return tensor.numel() * _stored_dtype(name, tensor).itemsize


def _dtypes(name: str) -> tuple[torch.dtype, ...]:
    """Return what a tensor may be stored in, the usual type first."""
    part = name.rpartition("/")[2]
    if not name.startswith(_CURVATURE) or part == "input_examples":
        return (torch.float32,)
    return (torch.int64,) if part == "inputs" else _OPERATOR


def _stored_dtype(name: str, tensor: Tensor) -> torch.dtype:
    return tensor.dtype if tensor.dtype in _dtypes(name) else _dtypes(name)[0]


def _stored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert to what is stored; safetensors takes no two tensors that share memory."""
    stored, memories = {}, set[int]()
    for name, tensor in tensors.items():
        value = tensor.detach().to("cpu", _stored_dtype(name, tensor)).contiguous()
        memory = value.untyped_storage()
        strided = value.reshape(-1).stride() != (1,)  # of a single number PyTorch lets it pass
        if memory.data_ptr() in memories or memory.nbytes() != value.nbytes or strided:
            value = value.clone(memory_format=torch.contiguous_format)
        memories.add(value.untyped_storage().data_ptr())
        stored[name] = value
    return stored
