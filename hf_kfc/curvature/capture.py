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
from .discovery import Layer, evaluating
from .frozen_linear import is_plain
from .layers import experts
from .positions import Positions

__all__ = ["Use", "capture", "frozen", "learning", "without_cache"]


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

    The parameters should be :func:`frozen`: then the graph starts at the output of the first
    recorded layer and no weight gradient is ever computed.

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


@contextmanager
def learning(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let some parameters of a frozen model have gradients in the forward passes of the block.

    Args:
        parameters: Their ``requires_grad`` is False otherwise.
    """
    parameters = list(parameters)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode without trainable parameters; restore both afterwards.

    What was compiled in place runs as it was written: compiled code does not call hooks. A forward
    in which accelerate has put autocast, as Trainer does, is the model's own again. Nor does the
    model keep a cache (:func:`without_cache`).
    """
    forward, original = model.forward, vars(model).get("_original_forward")
    trainable = [p for p in model.parameters() if p.requires_grad]
    compiled = {m: m._compiled_call_impl for m in model.modules() if m._compiled_call_impl}
    for module in compiled:
        module._compiled_call_impl = None
    if original is not None:
        model.forward = original
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        with evaluating(model), without_cache(model):
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, call in compiled.items():
            module._compiled_call_impl = call
        if original is not None:
            model.forward = forward


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Let a model keep no past keys, values or states, and leave its configs as they were.

    In evaluation mode most decoders fill a cache that nobody reads, and RWKV writes its states
    where autograd still needs them. A loss may note its ``problem_type`` in the config.

    Args:
        model: It and its parts may have a config.
    """
    found: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    kept = [
        (config, name, getattr(config, name))
        for config in {id(config): config for config in found}.values()
        for name in ("use_cache", "problem_type")
        if hasattr(config, name)
    ]
    for config, name, _ in kept:
        if name == "use_cache":
            config.use_cache = False
    try:
        yield
    finally:
        for config, name, value in kept:
            setattr(config, name, value)
