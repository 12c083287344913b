"""What covers any parameter: the exact diagonal by autograd, one example at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from ..curvature_arguments import Labels
from ..precision import wide, wide_dtype
from .blocks import Block, Layout
from .likelihood import Outputs, logit_gradients
from .modes import learning
from .operators import Diagonal

__all__ = ["PerExampleSquares"]


class _Sum(NamedTuple):
    """A parameter's squared gradients, and in how many examples a table's rows are looked up."""

    parameter: nn.Parameter
    total: Tensor
    seen: Tensor | None


class PerExampleSquares:
    """Σ over examples of the squared gradients of parameters that no rule covers.

    It costs a forward and a backward pass of every example by itself, whatever the model does with
    its parameters: they may be read without a call, once for a batch, or by data-dependent routes.

    Args:
        model: The model.
        names: Of the parameters.
    """

    def __init__(self, model: nn.Module, names: Mapping[str, str]) -> None:
        parameters = dict(model.named_parameters())
        kinds = (nn.Embedding, nn.EmbeddingBag)
        tables = {id(module.weight) for module in model.modules() if isinstance(module, kinds)}
        self._sums: dict[str, _Sum] = {}
        for name in names:
            parameter = parameters[name]
            total = torch.zeros_like(parameter, dtype=wide_dtype(parameter.dtype))
            seen = total.new_zeros(len(parameter)) if id(parameter) in tables else None
            self._sums[name] = _Sum(parameter, total, seen)

    def totals(self) -> list[Tensor]:
        """Return the tensors to be summed over processes."""
        seen = [own.seen for own in self._sums.values() if own.seen is not None]
        return [own.total for own in self._sums.values()] + seen

    def add(self, forward: Callable[[], Outputs], kind: Labels, key: int, seed: int) -> None:
        """Add one example, by a forward pass of it alone; its number seeds sampled labels."""
        parameters = [own.parameter for own in self._sums.values()]
        tables = {name: own.seen for name, own in self._sums.items() if own.seen is not None}
        read = {name: torch.zeros_like(seen, dtype=torch.bool) for name, seen in tables.items()}
        with learning(parameters):
            weights = {id(self._sums[name].parameter): rows for name, rows in read.items()}
            with torch.enable_grad(), _LookUps(weights) as look_ups:
                outputs = forward()
            if not outputs.logits.requires_grad:  # no parameter has a part in this example
                return
            for v in logit_gradients(outputs, kind, [key], seed):
                gradients: Sequence[Tensor | None] = torch.autograd.grad(
                    outputs.logits,
                    parameters,
                    v.to(outputs.logits.dtype),
                    retain_graph=kind is Labels.EXACT,
                    allow_unused=True,
                )
                for (name, own), gradient in zip(self._sums.items(), gradients, strict=True):
                    if gradient is None:  # the parameter has no part in this example
                        continue
                    square = wide(gradient.to_dense()).square()
                    own.total.add_(square)
                    if name in read and id(own.parameter) not in look_ups.found:
                        read[name] |= square.flatten(1).any(1)
        for name, seen in tables.items():
            seen.add_(read[name])

    def blocks(self, num_examples: int) -> Iterator[Block]:
        """Give each parameter a block: by tokens of an embedding, else one column."""
        for name, own in self._sums.items():
            mean, shapes = own.total / num_examples, {name: tuple(own.parameter.shape)}
            if own.seen is not None:
                by_token = Diagonal(mean.T.contiguous())
                yield Block(name, Layout.IN_OUT, shapes, by_token, input_examples=own.seen)
            else:
                yield Block(name, Layout.ELEMENTWISE, shapes, Diagonal(mean.reshape(-1, 1)))


class _LookUps(TorchFunctionMode):
    """Notes which rows of some weights are looked up inside the context.

    Args:
        read: By the weight's id whether each row was, shape [V]; changed in place.

    Attributes:
        found: The ids of the weights that were looked up.
    """

    def __init__(self, read: Mapping[int, Tensor]) -> None:
        super().__init__()
        self._read = read
        self.found = set[int]()

    @override
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is functional.embedding and len(args) > 1 and id(args[1]) in self._read:
            ids, weight = args[:2]
            padding = args[2] if len(args) > 2 else (kwargs or {}).get("padding_idx")
            self.found.add(id(weight))
            read = ids.flatten() if padding is None else ids[ids != padding % len(weight)]
            self._read[id(weight)][read] = True
        return func(*args, **(kwargs or {}))
