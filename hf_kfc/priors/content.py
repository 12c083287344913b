"""A prior's parts as JSON values and named tensors, and what can be wrong with them."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..curvature import OPERATORS, Block, Curvature, Layout
from ..errors import PriorError, ProbeError
from ..precision import all_finite
from ..probes import Probes, digest_of
from ..schema import read
from .provenance import Provenance
from .schema import ANCHOR, ROWS, BlockEntry, Outline, entries_of

__all__ = [
    "Parts",
    "fingerprint_of",
    "from_content",
    "problems_of_parts",
    "stored_bytes",
    "to_content",
]

_CURVATURE = "curvature/"
_OPERATOR = (torch.float32, torch.bfloat16)

_PROBES = "probes/"
Parts = tuple[dict[str, Tensor], Curvature, Provenance]
"""Anchor, curvature and provenance."""


def to_content(
    anchor: Mapping[str, Tensor],
    curvature: Curvature,
    provenance: Provenance,
    probes: Probes | None = None,
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
    stored = _stored(tensors)
    if probes is not None:
        config["probes"], outputs = probes.state()
        stored |= {_PROBES + name: value for name, value in outputs.items()}
    return config, stored


def from_content(
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    damages: Sequence[str] = (),
    *,
    model: Mapping[str, Tensor] | None = None,
) -> tuple[dict[str, Tensor], Curvature, Provenance, Probes | None]:
    """Undo :func:`to_content`; values are judged by whoever makes a prior of the parts.

    Args:
        config: The values; untrusted, as the tensors are.
        tensors: The tensors by name.
        damages: Why tensors may be missing.
        model: Parameters to take the anchors from that are not among the tensors.

    Raises:
        PriorError: There are damages or something is malformed, or the tensors are not those that
            are told of; all of either is listed.
    """
    outline, problems = read(Outline, config, "the description")
    entries, wrong = entries_of(config)
    problems = [*damages, *problems, *wrong]
    try:
        provenance = Provenance.from_dict(config.get("provenance"))
    except PriorError as error:
        raise PriorError("; ".join([*problems, str(error)])) from None
    if outline is None or problems:
        raise PriorError("; ".join(problems))
    outputs = {n.removeprefix(_PROBES): t for n, t in tensors.items() if n.startswith(_PROBES)}
    tensors = {n: t for n, t in tensors.items() if not n.startswith(_PROBES)}
    problems = _problems_of_tensors(entries, tensors)
    probes = None
    try:
        if config.get("probes") is not None:
            probes = Probes.from_state(config["probes"], outputs)
        elif outputs:
            problems.append("there are tensors of probes, and the description tells of none")
    except ProbeError as error:
        problems.append(str(error))
    if problems:
        raise PriorError("; ".join(problems))
    blocks = tuple(_block(entry, tensors) for entry in entries)
    anchors = {n.removeprefix(ANCHOR): t for n, t in tensors.items() if n.startswith(ANCHOR)}
    curvature = Curvature(blocks, outline.num_curvature_examples, tuple(outline.ignored))
    return _covered(blocks, model or {}) | anchors, curvature, provenance, probes


def _problems_of_tensors(entries: Sequence[BlockEntry], tensors: Mapping[str, Tensor]) -> list[str]:
    """Say which tensors are missing or too many, or cannot be what they are named for."""
    problems = [
        f"tensor {name} is {value.dtype}, expected {' or '.join(map(str, _dtypes(name)))}"
        for name, value in tensors.items()
        if value.dtype not in _dtypes(name)
    ]
    used = set[str]()
    for entry in entries:
        keys = [*entry.tensors.values(), *entry.rows.values()]
        wrong = [f"tensor {key} is missing" for key in keys if key not in tensors]
        strange = [key for key in entry.tensors.values() if _dtypes(key) != _OPERATOR]
        kind = OPERATORS.get(entry.operator)
        if kind is None:
            kinds = ", ".join(OPERATORS)
            wrong.append(f"operator '{entry.operator}' is unknown, expected one of {kinds}")
        elif set(entry.tensors) != set(kind.tensor_names):
            found, expected = ", ".join(sorted(entry.tensors)), ", ".join(kind.tensor_names)
            wrong.append(f"operator '{kind.kind}' has tensors {found}, expected {expected}")
        else:
            wrong += [f"tensor {key} is no part of an operator" for key in strange]
        problems += [f"{entry.name}: {phrase}" for phrase in wrong]
        used.update(keys)
    strays = [name for name in tensors if name not in used and not name.startswith(ANCHOR)]
    return problems + [f"tensor {name} belongs to no block" for name in strays]


def _block(entry: BlockEntry, tensors: Mapping[str, Tensor]) -> Block:
    shapes = {name: tuple(shape) for name, shape in entry.parameters.items()}
    state = {part: tensors[key] for part, key in entry.tensors.items()}
    rows = {part: tensors[key] for part, key in entry.rows.items()}
    operator = OPERATORS[entry.operator].from_state(state)
    return Block(entry.name, Layout(entry.layout), shapes, operator, **rows)


def _covered(blocks: Sequence[Block], model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the anchors out of a model's parameters; what does not fit is judged as it is."""
    anchor: dict[str, Tensor] = {}
    for block in blocks:
        own = {name: model[name].float() for name in block.shapes if name in model}
        whole = {name: tuple(value.shape) for name, value in own.items()} == block.shapes
        if block.inputs is not None and whole and not block_problems(block):
            own = block.covered(own)
        anchor |= own
    return anchor


def fingerprint_of(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of the blocks, probes and tensors that :func:`to_content` made."""
    names = sorted(tensors)
    layout = [config["blocks"], [[name, list(tensors[name].shape)] for name in names]]
    if config.get("probes") is not None:
        outputs = [name for name in names if name.startswith(_PROBES)]
        layout.append([config["probes"], [[name, str(tensors[name].dtype)] for name in outputs]])
    digest = hashlib.sha256(json.dumps(layout).encode())
    for name in names:
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def stored_bytes(name: str, tensor: Tensor) -> int:
    """Return how many bytes ``anchor/<parameter>`` or ``curvature/<part>`` takes in the files."""
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


# --- What can be wrong, whoever made the parts ----------------------------------------------------


def problems_of_parts(
    anchor: Mapping[str, Tensor],
    curvature: Curvature,
    provenance: Provenance,
    probes: Probes | None = None,
) -> list[str]:
    """Say what is wrong with a prior's parts."""
    blocks = curvature.blocks
    problems = provenance.problems()
    if not blocks:
        problems.append("no parameter is covered")
    shapes = {name: shape for block in blocks for name, shape in _anchor_shapes(block).items()}
    problems += [f"the anchor of {name} is missing" for name in shapes if name not in anchor]
    problems += [f"the anchor {name} has no curvature" for name in anchor if name not in shapes]
    for name, value in anchor.items():
        if name in shapes and tuple(value.shape) != shapes[name]:
            found, expected = list(value.shape), list(shapes[name])
            problems.append(f"the anchor {name} has shape {found}, expected {expected}")
        problems += _bad_values(f"the anchor {name}", value)
    owners = Counter(name for block in blocks for name in block.shapes)
    problems += [f"parameter {name} stands in two blocks" for name, n in owners.items() if n > 1]
    names = Counter(block.name for block in blocks)
    problems += [f"two blocks have the name '{name}'" for name, n in names.items() if n > 1]
    looked_at: dict[Hashable, list[str]] = {}  # once, however many blocks name the same tensors
    for block in blocks:
        # Of what has no sound shape or values that are not even finite, nothing more is said.
        if not (wrong := block_problems(block)):
            operator, state = block.operator, block.operator.state()
            key = (operator.kind, block.shape, *map(id, state.values()))
            if key not in looked_at:
                bad = [phrase for part in state for phrase in _bad_values(part, state[part])]
                looked_at[key] = bad or operator.problems(block.shape)
            wrong = looked_at[key]
        problems += [f"{block.name}: {phrase}" for phrase in wrong]
    if probes is not None and not problems:
        problems += _other_anchors(anchor, blocks, probes)
    return problems


def _other_anchors(
    anchor: Mapping[str, Tensor], blocks: Sequence[Block], probes: Probes
) -> list[str]:
    """Say for which parameters the probes are of another anchor; one without all rows may be."""
    digests = probes.anchor_digests
    whole = [name for block in blocks if block.inputs is None for name in block.shapes]
    others = [n for n in whole if n in digests and digest_of(anchor[n]) != digests[n]]
    unknown = [name for name in whole if name not in digests]
    if unknown or others:
        return [
            f"the probes are of another anchor: {', '.join([*unknown, *others])} differ; make them "
            "with the model that the prior is of"
        ]
    return []


def _anchor_shapes(block: Block) -> dict[str, tuple[int, ...]]:
    """Return the shapes that the anchors should have, also of a block that cannot be."""
    if block.inputs is None or block.inputs.ndim != 1 or len(block.shapes) != 1:
        return dict(block.shapes)
    return block.anchor_shapes


_DIMENSIONS = {
    Layout.OUT_IN: (2, 99),
    Layout.IN_OUT: (2, 2),
    Layout.STACK_OUT_IN: (3, 3),
    Layout.STACK_IN_OUT: (3, 3),
}
"""How many a weight has at least and at most."""


def block_problems(block: Block) -> list[str]:
    """Say why parameters cannot be joined to a matrix, or tokens not be those of its columns."""
    if len(block.shapes) not in (1, 2):
        return [f"{len(block.shapes)} parameters do not make a weight and a bias"]
    (name, weight), *bias = block.shapes.items()
    least, most = _DIMENSIONS.get(block.layout, (0, len(weight)))
    if not least <= len(weight) <= most or (least and not prod(weight)):
        return [f"{name} of shape {list(weight)} has no layout '{block.layout}'"]
    if block.inputs is None and block.input_examples is None:
        rows = block.shape[0]
        return [
            f"{name} has shape {list(shape)}, expected [{rows}]"
            for name, shape in bias
            if prod(shape) != rows
        ]
    if bias or block.layout is not Layout.IN_OUT:
        return ["only an embedding has inputs"]
    return _row_problems(block, weight[0])


def _row_problems(block: Block, tokens: int) -> list[str]:
    inputs, examples = block.inputs, block.input_examples
    if inputs is not None and (
        inputs.ndim != 1
        or not len(inputs)
        or not bool((inputs.diff() > 0).all())
        or not 0 <= int(inputs[0]) <= int(inputs[-1]) < tokens
    ):
        return [f"inputs are not ascending numbers from 0 to {tokens - 1}"]
    size = tokens if inputs is None else len(inputs)
    if examples is not None and (
        tuple(examples.shape) != (size,) or not bool((examples >= 0).all())
    ):
        return [f"input_examples are not {size} counts"]
    return []


def _bad_values(name: str, value: Tensor) -> list[str]:
    if not value.is_floating_point():
        return [f"{name} is {value.dtype}, expected a floating-point type"]
    return [] if all_finite(value) else [f"{name} has NaN or infinite values"]
