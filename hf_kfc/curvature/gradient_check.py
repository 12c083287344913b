"""Makes sure, on a first batch, that the layers' tensors are what the gradients are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import CurvatureError
from .accumulators import LayerBatch, squared_gradients
from .capture import Use
from .discovery import Layer
from .operators import Identity
from .positions import Positions

__all__ = ["check_gradients", "learning"]

_ROUNDING = 1e-6  # relative to the norms of what is summed
_TOLERANCE, _HALF_TOLERANCE = 0.01, 0.1  # relative to a gradient's largest entry


@contextmanager
def learning(layers: Sequence[Layer]) -> Iterator[None]:
    """Let the parameters of some layers have gradients in the forward passes of the block.

    Args:
        layers: Layers of a model that is otherwise frozen.
    """
    parameters = [p for layer in layers for p in layer.parameters.values()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def check_gradients(
    layers: Sequence[Layer],
    logits: Tensor,
    uses: Mapping[str, Sequence[Use]],
    positions: Positions,
) -> None:
    """Make sure that the uses of the layers separate examples and make up all of their gradients.

    Args:
        layers: The layers.
        logits: Of a forward pass while the layers were (and still are) :func:`learning`,
            [N, ..., K].
        uses: Of that pass, by layer name.
        positions: Of its batch.

    Raises:
        CurvatureError: The first example's logits depend on rows of another example, or a
            parameter's gradient is not what its layer's rule makes of the uses: the weight is read
            outside of its module too, or the class computes something else than its name says.
    """
    calls = [(layer, use) for layer in layers for use in uses[layer.name] if use.edge]
    for layer, use in calls:
        use.unchanged_input(layer.name)
    first = torch.zeros_like(logits)
    first[0] = torch.arange(1, logits.shape[-1] + 1) / logits.shape[-1]
    edges = [use.edge for _, use in calls if use.edge]
    sources: list[Any] = [*edges, *(p for layer in layers for p in layer.parameters.values())]
    found = torch.autograd.grad(logits, sources, first, allow_unused=True)
    of_uses, of_parameters = iter(found[: len(edges)]), iter(found[len(edges) :])
    for layer in layers:
        gradients = [next(of_uses) if use.edge else None for use in uses[layer.name]]
        for use, gradient in zip(uses[layer.name], gradients, strict=True):
            _refuse_mixing(layer, use, gradient, positions)
        own = {name: _filled(next(of_parameters), p) for name, p in layer.parameters.items()}
        _refuse_other_gradient(layer, uses[layer.name], gradients, own, positions)


def _filled(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient.to_dense()


def _refuse_mixing(layer: Layer, use: Use, gradient: Tensor | None, positions: Positions) -> None:
    """Make sure that the gradient of the first example alone is zero at all other examples.

    A shape alone does not tell ``[examples, tokens]`` from ``[tokens, examples]``, or from
    ``[tokens]`` computed once for all examples.
    """
    rows = torch.Size(layer.rule.leading(use.module, use.output)).numel()
    if gradient is None or (
        rows % positions.examples == 0
        and not layer.rule.outputs(use.module, gradient, positions.examples)[1:].any()
    ):
        return
    raise CurvatureError(
        f"the output of layer '{layer.name}', of shape {list(use.output.shape)}, is not "
        "separate for each example of a batch; estimate with curvature_batch_size=1"
    )


def _refuse_other_gradient(
    layer: Layer,
    uses: Sequence[Use],
    gradients: Sequence[Tensor | None],
    own: Mapping[str, Tensor],
    positions: Positions,
) -> None:
    """Compare the gradient's size, entry by entry: of the rule, the batch one example, and own."""
    batch = LayerBatch(layer, uses, Positions(positions.mask[None]))
    batch.set_gradients(gradients)
    squares = squared_gradients(layer)
    with torch.no_grad(), torch.autocast(uses[0].output.device.type, enabled=False):
        squares.add_gradients(batch)
        seen = squares.total.sqrt()
        expected = layer.block(Identity()).join(own).to(seen.dtype).abs()
        half = any(torch.finfo(use.output.dtype).eps > 1e-4 for use in uses)
        allowed = (_HALF_TOLERANCE if half else _TOLERANCE) * float(expected.max())
        for use, gradient in zip(uses, gradients, strict=True):
            if gradient is not None:
                reach = float(use.x.norm()) if use.x.is_floating_point() else 1.0
                allowed += _ROUNDING * float(gradient.norm()) * reach
    if float((seen - expected).abs().max()) > allowed:
        kinds = " and ".join(dict.fromkeys(type(use.module).__name__ for use in uses))
        raise CurvatureError(
            f"the gradient of layer '{layer.name}' ({kinds}) is not made of the inputs and outputs "
            "of its calls: its weight is read elsewhere too, or it computes something else than "
            "its class tells; list its parameters in `ignore=[...]` to let them move freely"
        )
