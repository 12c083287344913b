"""What can be wrong with a prior's parts, whoever made them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod

from torch import Tensor

from ..curvature import Block, Curvature, Layout
from .provenance import Provenance

__all__ = ["misfits_of", "row_misfits"]


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
    shapes = curvature.anchor_shapes
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
        wrong = _shape_misfits(block) or row_misfits(block) or _operator_misfits(block)
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


def row_misfits(block: Block) -> list[str]:
    """Say why the tokens that a block covers cannot be those."""
    inputs, examples = block.inputs, block.input_examples
    if inputs is None and examples is None:
        return []
    (shape, *others) = block.shapes.values()
    if others or len(shape) != 2 or block.layout is not Layout.IN_OUT:
        return ["only an embedding has inputs"]
    misfits = []
    if inputs is not None and (
        inputs.ndim != 1
        or not len(inputs)
        or not bool((inputs.diff() > 0).all())
        or not 0 <= int(inputs[0]) <= int(inputs[-1]) < shape[0]
    ):
        misfits.append(f"inputs are not ascending numbers from 0 to {shape[0] - 1}")
    size = shape[0] if inputs is None else len(inputs)
    if examples is not None and (
        tuple(examples.shape) != (size,) or not bool((examples >= 0).all())
    ):
        misfits.append(f"input_examples are not {size} counts")
    return misfits


def _operator_misfits(block: Block) -> list[str]:
    bad = {part: _bad_values(part, value) for part, value in block.operator.state().items()}
    return [phrase for phrases in bad.values() for phrase in phrases] + [
        phrase
        for phrase in block.operator.problems(block.shape)
        if "shape" in phrase or not bad[phrase.split()[0]]
    ]


def _bad_values(name: str, value: Tensor) -> list[str]:
    if not value.is_floating_point():
        return [f"{name} is {value.dtype}, expected a floating-point type"]
    if value.numel() == 0 or bool(value.isfinite().all()):
        return []
    return [f"{name} has NaN or infinite values"]
