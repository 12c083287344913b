"""Estimates of curvatures, the exact ones beside them, and their comparison."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from hf_kfc.curvature import (
    Curvature,
    CurvatureArguments,
    Operator,
    Outputs,
    default_forward,
    default_position_mask,
    estimate_curvature,
    exact_block_fisher,
    per_example_gradients,
)

LABELS = ("empirical", "sampled", "exact")
SHARINGS = ("expand", "reduce", "average", "centred")
KINDS = ("diagonal", "kronecker", "kronecker_eigen")


def offered_forward(model: nn.Module, batch: Mapping[str, Tensor]) -> Outputs:
    """Run a model on a batch; candidates that are not offered have no share of the softmax."""
    inputs = dict(batch)
    offered = inputs.pop("candidate_mask", None)
    outputs = default_forward(model, inputs)
    if offered is None:
        return outputs
    least = torch.finfo(outputs.logits.dtype).min
    return outputs._replace(logits=outputs.logits.masked_fill(~offered, least))


def offered_positions(batch: Mapping[str, Tensor]) -> Tensor:
    """The attended tokens of candidates that are offered."""
    mask = default_position_mask(batch)
    return mask & batch["candidate_mask"][..., None] if "candidate_mask" in batch else mask


def estimate(
    model: nn.Module, data: Any, collator: Any = default_collate, **arguments: Any
) -> Curvature:
    """Estimate a curvature, with the arguments given by name."""
    hooks = {"forward": offered_forward, "position_mask": offered_positions}
    hooks |= {k: arguments.pop(k) for k in tuple(hooks) if k in arguments}
    return estimate_curvature(model, data, collator, CurvatureArguments(**arguments), **hooks)


def operators(curvature: Curvature) -> dict[str, Operator]:
    """The operator of each block, by name."""
    return {block.name: block.operator for block in curvature.blocks}


def dense(curvature: Curvature) -> dict[str, Tensor]:
    """The operators as matrices, by block name."""
    return {b.name: b.operator.matrix(*b.shape) for b in curvature.blocks}


def oracle(
    model: nn.Module,
    data: Any,
    curvature: Curvature,
    labels: str = "empirical",
    collator: Any = default_collate,
) -> dict[str, Tensor]:
    """The exact Fisher of the same blocks."""
    return exact_block_fisher(
        per_example_gradients(model, data, collator, labels, forward=offered_forward),
        len(data),
        curvature,
    )


def assert_equal_matrices(
    actual: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-10
) -> None:
    """Compare block by block, relative to the largest entry of the block.

    Below 1e-25 is zero: the gradients of a key sum to zero over positions, up to rounding.
    """
    assert actual.keys() == expected.keys()
    for name, matrix in expected.items():
        scale = float(matrix.abs().max())
        assert scale > 0, f"{name} is zero: the test would prove nothing"
        torch.testing.assert_close(actual[name], matrix, rtol=0, atol=rtol * scale + 1e-25)


def images(curvature: Curvature) -> dict[str, Tensor]:
    """What the operators make of fixed displacements: equal if and only if they are equal."""

    def image(operator: Operator, shape: tuple[int, int]) -> Tensor:
        dtype = next(iter(operator.state().values())).dtype
        delta = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
        return operator.apply(delta)

    return {b.name: image(b.operator, b.shape) for b in curvature.blocks}
