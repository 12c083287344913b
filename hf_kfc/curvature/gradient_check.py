"""Makes sure, on a first batch, that the layers' tensors are what the gradients are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..precision import largest
from .accumulators import LayerBatch, squared_gradients
from .capture import Use, differentiate
from .discovery import Layer
from .operators import Identity

__all__ = [
    "MIXED",
    "check_gradients",
    "mixed_layers",
    "reaches_what_counts",
    "to_teach",
]

_ROUNDING = 1e-6  # relative to the norms of what is summed
_TOLERANCE, _HALF_TOLERANCE = 0.01, 0.1  # relative to a gradient's largest entry

MIXED = "its output is not separate for each example of a batch, as with curvature_batch_size=1"
OTHER = (
    "its gradient is not made of the inputs and outputs of its calls: its weight is read elsewhere "
    "too, or its class computes something else than its name tells"
)


def check_gradients(
    layers: Sequence[Layer], logits: Tensor, uses: Mapping[str, Sequence[Use]], examples: int
) -> tuple[dict[str, str], set[tuple[str, int]]]:
    """Find layers whose uses do not separate examples or do not make up all of their gradients.

    Args:
        layers: The layers.
        logits: Of a forward pass while the layers' parameters had (and still have) gradients,
            [N, ..., K].
        uses: Of that pass, by layer name.
        examples: N.

    Returns:
        What is wrong, by layer name: the first example's logits depend on rows of another
        example, or a parameter's gradient is not what the layer's rule makes of its uses. And the
        calls, by name and number, that the logits do not depend on: DoRA's of an identity.
    """
    first = torch.arange(examples) == 0
    of_uses, of_parameters = _gradients(layers, logits, uses, _of_some(logits, first))
    wrong: dict[str, str] = {}
    for layer in layers:
        calls, gradients = uses[layer.name], of_uses[layer.name]
        own = {n: _filled(of_parameters[id(p)], p) for n, p in layer.parameters.items()}
        try:
            for use in calls:
                use.unchanged_input(layer.name)
            if _mixes(layer, calls, gradients, first):
                wrong[layer.name] = MIXED
            elif not _makes_up(layer, calls, gradients, own):
                wrong[layer.name] = OTHER
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            wrong[layer.name] = f"its rule cannot read it: {str(error)[:200]}"
    idle = {(n, i) for n, own in of_uses.items() for i, g in enumerate(own) if g is None}
    return wrong, idle


def mixed_layers(
    layers: Sequence[Layer], logits: Tensor, uses: Mapping[str, Sequence[Use]], chosen: Tensor
) -> list[Layer]:
    """Find layers whose uses do not separate some examples of a batch from the others.

    A shape alone does not tell ``[examples, tokens]`` from ``[tokens, examples]``, from
    ``[tokens]`` computed once for all examples, or from rows that happen to be sent somewhere.

    Args:
        layers: The layers.
        logits: Of a forward pass, [N, ..., K]; the graph is kept.
        uses: Of that pass, by layer name.
        chosen: The examples, shape [N].
    """
    by_name, mixed = {layer.name: layer for layer in layers}, set()

    def look(name: str, gradients: list[Tensor | None]) -> None:
        if _mixes(by_name[name], uses[name], gradients, chosen):
            mixed.add(name)

    own = {name: uses[name] for name in by_name}
    differentiate(logits, _of_some(logits, chosen), own, look, retain_graph=True)
    return [layer for layer in layers if layer.name in mixed]


def to_teach(number: int, examples: int) -> Tensor | None:
    """Choose examples of a pass's n-th batch whose gradients tell if a layer mixes examples.

    They are to reach no row of the others. In the first batch it is every other one, in batches 4,
    16, 64 and so on one of each pair too, the other one where the pair's place has the next binary
    digit 1: pairs are parted in each of these batches, and any other two examples in one of as many
    as their places have digits. A look costs a third of a batch's plain forward and backward pass.

    Args:
        number: n, from 1 on.
        examples: In the batch.

    Returns:
        A mask of the examples, shape [N]; None in all other batches.
    """
    time, is_checked = divmod(number.bit_length(), 2)
    if examples == 1 or number.bit_count() > 1 or not is_checked:
        return None
    places, digit = torch.arange(examples), time % (examples - 1).bit_length()
    return (places ^ (places >> digit if digit else 0)) & 1 == 1


def reaches_what_counts(batch: LayerBatch) -> list[bool]:
    """Say of each use that reads padding whether its gradient reaches a position that counts.

    Args:
        batch: With its gradients; uses without any are left out.
    """
    return [
        bool((valid & reached).any())
        for valid, reached in batch.reached()
        if valid.shape == reached.shape and not bool(valid.all()) and bool(reached.any())
    ]


def _gradients(
    layers: Sequence[Layer],
    logits: Tensor,
    uses: Mapping[str, Sequence[Use]],
    weights: Tensor,
) -> tuple[dict[str, list[Tensor | None]], dict[int, Tensor | None]]:
    """Differentiate logits, weighted, by all outputs and parameters."""
    parameters = [p for layer in layers for p in layer.parameters.values()]
    edges = [use.edge for layer in layers for use in uses[layer.name] if use.edge]
    sources: list[Any] = [*edges, *parameters]
    if not sources or not logits.requires_grad:
        found: Sequence[Tensor | None] = [None] * len(sources)
    else:
        found = torch.autograd.grad(logits, sources, weights, retain_graph=True, allow_unused=True)
    of_edges = iter(found[: len(edges)])
    of_uses = {
        layer.name: [next(of_edges) if use.edge else None for use in uses[layer.name]]
        for layer in layers
    }
    return of_uses, dict(zip(map(id, parameters), found[len(edges) :], strict=True))


def _of_some(logits: Tensor, chosen: Tensor) -> Tensor:
    """Return weights of some function of some examples' logits."""
    slope = (torch.arange(1, logits.shape[-1] + 1) / logits.shape[-1]).to(logits)
    rows = chosen.to(logits).reshape(-1, *[1] * (logits.ndim - 1))
    return (rows * slope).expand_as(logits)


def _filled(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient.to_dense()


def _mixes(
    layer: Layer, uses: Sequence[Use], gradients: Sequence[Tensor | None], chosen: Tensor
) -> bool:
    """Whether the gradient of the chosen examples is not zero at all other examples."""
    examples = len(chosen)
    for use, gradient in zip(uses, gradients, strict=True):
        if gradient is None:
            continue
        rows = torch.Size(layer.rule.leading(use.module, use.output)).numel()
        if rows % examples or not rows:
            return True
        others = layer.rule.outputs(use.module, gradient, examples)[~chosen.to(gradient.device)]
        if others.numel() and bool(largest(others)):  # NaN is not 0
            return True
    return False


def _makes_up(
    layer: Layer,
    uses: Sequence[Use],
    gradients: Sequence[Tensor | None],
    own: Mapping[str, Tensor],
) -> bool:
    """Compare the gradient's size, entry by entry: of the rule, the batch one example, and own."""
    with torch.no_grad():
        expected = layer.block(Identity()).join(own).to(layer.zeros().dtype).abs()
        # Squares of gradients below 1e-19 would be 0 in float32.
        most = float(expected.max())
        scale = most or 1.0
        batch = LayerBatch(layer, uses, 1)
        batch.set_gradients([None if g is None else g / scale for g in gradients])
        squares = squared_gradients(layer)
        squares.add_gradients(batch)
        half = any(torch.finfo(use.output.dtype).eps > 1e-4 for use in uses)
        allowed = (_HALF_TOLERANCE if half else _TOLERANCE) * most / scale
        for use, gradient in zip(uses, gradients, strict=True):
            if gradient is not None:
                reach = float(use.x.norm()) if use.x.is_floating_point() else 1.0
                allowed += _ROUNDING * float((gradient / scale).norm()) * reach
        error = squares.total.sqrt_().sub_(expected.div_(scale))
        return bool(largest(error) <= allowed)
