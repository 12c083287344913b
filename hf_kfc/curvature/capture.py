"""Inputs, outputs and output gradients of layers during one forward pass, by hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from ..errors import CurvatureError
from ..precision import wide
from .discovery import Layer
from .frozen_linear import is_plain
from .layers import experts
from .positions import Positions

__all__ = ["Use", "capture", "differentiate"]


@dataclass
class Use:
    """One call of one module.

    Args:
        module: The module.
        x: Its input.
        output: Its output as the model reads it; an in-place activation may write to it.
        edge: Where the gradient of the output arrives; None without a graph.
        positions: Those of its batch that this call is about; None if no mask is known for it.
    """

    module: nn.Module
    x: Tensor
    output: Tensor
    edge: GradientEdge | None
    positions: Positions | None = None

    def __post_init__(self) -> None:
        self._version = self.x._version

    def unchanged_input(self, layer: str) -> Tensor:
        """Return the input, after making sure that nothing wrote to it since.

        Args:
            layer: Name for the error.

        Raises:
            CurvatureError: The input was modified in place after the layer had read it.
        """
        if self.x._version != self._version:
            raise CurvatureError(
                f"the input of layer '{layer}' was modified in place after the layer had read it; "
                "make that operation out of place"
            )
        return self.x.detach()


@contextmanager
def capture(layers: Sequence[Layer], positions: Positions) -> Iterator[dict[str, list[Use]]]:
    """Record every use of some layers during the forward passes inside the block.

    The model should be ``frozen``: then the graph starts at the output of the first recorded layer
    and no weight gradient is ever computed.

    Args:
        layers: The layers to record.
        positions: Of the batch that is run.

    Yields:
        Uses by layer name, in the order of the calls.
    """
    uses: dict[str, list[Use]] = {layer.name: [] for layer in layers}

    def record(
        name: str,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        output: Tensor,
    ) -> Tensor:
        x, own_positions = args[0] if args else next(iter(kwargs.values()), None), None
        if not is_plain(x) or not is_plain(output):
            return output  # of no rule; that there is no use tells it
        if (own_positions := positions.of(name, len(uses[name]))) is not None:
            x, output = own_positions.separate(x, output)
        edge = None
        if torch.is_grad_enabled():
            own = output if output.requires_grad else output.detach().requires_grad_()
            edge = get_gradient_edge(own)
            # An in-place activation moves the edge of a leaf or of a view (GPT-2's Conv1D returns
            # one): there the model goes on with a copy.
            output = own.clone() if own.is_leaf or own._is_view() else own
        uses[name].append(Use(module, x, output, edge, own_positions))
        return output

    handles = [
        module.register_forward_hook(partial(record, layer.name), with_kwargs=True)
        for layer in layers
        for module in layer.modules.values()
        if layer.rule.by_call(module)
    ]
    read = {
        weight: partial(record, layer.name, module)
        for layer in layers
        for weight, module in layer.read.items()
    }
    try:
        of_experts = filter(experts.are_experts, (m for y in layers for m in y.modules.values()))
        with experts.tokens_in_order(of_experts), _Reads(read) if read else nullcontext():
            yield uses
    finally:
        for handle in handles:
            handle.remove()


def differentiate(
    logits: Tensor,
    weights: Tensor,
    uses: Mapping[str, Sequence[Use]],
    take: Callable[[str, list[Tensor | None]], None],
    retain_graph: bool = False,
) -> None:
    """Differentiate scores by what some layers put out, one layer's gradients after the other.

    They are handed over as they arrive: of all layers together they are as large as what the
    model remembers of the batch, and are read in vain from memory if they have to wait.

    Args:
        logits: Scores whose graph has the uses in it.
        weights: Of the scores, in their shape.
        uses: By layer.
        take: Called once with each layer's name and the gradients of its uses, None of those that
            the scores do not depend on.
        retain_graph: Whether the graph is differentiated again.
    """
    found: dict[str, list[Tensor | None]] = {name: [None] * len(own) for name, own in uses.items()}
    missing = {name: sum(use.edge is not None for use in own) for name, own in uses.items()}

    def arrive(name: str, call: int, output: int, gradients: Sequence[Tensor | None]) -> None:
        found[name][call] = gradients[output]
        missing[name] -= 1
        if not missing[name]:
            take(name, found.pop(name))

    handles = [
        use.edge.node.register_prehook(partial(arrive, name, call, use.edge.output_nr))
        for name, own in uses.items()
        for call, use in enumerate(own)
        if use.edge is not None
    ]
    try:
        if logits.requires_grad:
            weights = weights.to(logits.dtype)
            torch.autograd.backward(logits, weights, retain_graph=retain_graph)
    finally:
        for handle in handles:
            handle.remove()
    for name in list(found):
        take(name, found.pop(name))


_READING = (functional.linear, functional.embedding, experts.linear)


class _Reads(TorchFunctionMode):
    """Records where some weights are read, whatever module does it.

    Args:
        records: What to do with arguments and output, by the weight's id.
    """

    def __init__(self, records: Mapping[int, Callable[..., Tensor]]) -> None:
        super().__init__()
        self._records = records

    @override
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func in _READING and len(args) > 1:
            record = self._records.get(id(args[1]))
            x = args[0]
            if record is not None and func is experts.linear:  # a row and the number of its expert
                x = torch.cat([wide(x), args[3][..., None]], dim=-1)
            return output if record is None else record((x,), {}, output)
        return output
