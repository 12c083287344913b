"""What can be wrong with a prior's parts, whoever made them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod

from torch import Tensor

from ..curvature import Block, Curvature, Layout
from ..probes import Probes, digest_of
from .provenance import Provenance

__all__ = ["block_problems", "problems_of_parts"]


def problems_of_parts(
    anchor: Mapping[str, Tensor],
    curvature: Curvature,
    provenance: Provenance,
    probes: Probes | None = None,
    *,
    incomplete: bool = False,
) -> list[str]:
    """Say what is wrong with a prior's parts; of what is ``incomplete``, not that parts miss."""
    blocks = curvature.blocks
    problems = provenance.problems()
    if not (blocks or incomplete):
        problems.append("no parameter is covered")
    shapes = {name: shape for block in blocks for name, shape in _anchor_shapes(block).items()}
    if not incomplete:
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
    for block in blocks:
        state = block.operator.state().items()
        # Of what has no sound shape or values that are not even finite, nothing more is said.
        wrong = (
            block_problems(block)
            or [phrase for part, value in state for phrase in _bad_values(part, value)]
            or block.operator.problems(block.shape)
        )
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


def block_problems(block: Block) -> list[str]:
    """Say why parameters cannot be joined to a matrix, or tokens not be those of its columns."""
    if len(block.shapes) not in (1, 2):
        return [f"{len(block.shapes)} parameters do not make a weight and a bias"]
    (name, weight), *bias = block.shapes.items()
    if block.layout is not Layout.ELEMENTWISE and (
        len(weight) < 2 or prod(weight) == 0 or (block.layout is Layout.IN_OUT and len(weight) > 2)
    ):
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
    if value.numel() == 0 or bool(value.isfinite().all()):
        return []
    return [f"{name} has NaN or infinite values"]
