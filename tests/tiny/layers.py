"""Layers of every kind, alone in a model of a few dozen parameters, and inputs for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.pytorch_utils import Conv1D

CLASSES = 3
POSITIONS = 4
Example = dict[str, Tensor]


@dataclass(frozen=True)
class Kind:
    """A layer kind: how to build one with 3 outputs, and inputs of one example for it.

    ``one`` gives a single position, ``same`` the same input at several positions, ``many``
    different inputs at several positions.
    """

    build: Callable[[], nn.Module]
    one: Callable[[], Tensor]
    same: Callable[[], Tensor]
    many: Callable[[], Tensor]


def _linear(build: Callable[[], nn.Module]) -> Kind:
    return Kind(
        build,
        one=lambda: torch.randn(1, 4),
        same=lambda: torch.randn(1, 4).repeat(POSITIONS, 1),
        many=lambda: torch.randn(POSITIONS, 4),
    )


def _conv(
    build: Callable[[], nn.Module],
    one: tuple[int, ...],
    many: tuple[int, ...],
    channels: int = 2,
) -> Kind:
    return Kind(
        build,
        one=lambda: torch.randn(channels, *one),
        same=lambda: torch.randn(channels, *(1 for _ in many)).expand(channels, *many).clone(),
        many=lambda: torch.randn(channels, *many),
    )


def _embedding(build: Callable[[], nn.Module]) -> Kind:
    return Kind(
        build,
        one=lambda: torch.randint(1, 5, (1,)),
        same=lambda: torch.randint(1, 5, (1,)).repeat(POSITIONS),
        many=lambda: torch.tensor([2, 4, 2, 1]),
    )


def _circular1(**settings: Any) -> Callable[[], nn.Module]:
    """A constant signal stays constant under circular padding, so all its patches are the same."""
    return lambda: nn.Conv1d(2, 3, 3, padding_mode="circular", **settings)


class Shifted(nn.Embedding):
    """Reads rows by another number than it is given, and scales them, as BART's tables do."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x + 2)


class Router(nn.Module):
    """A weight that no layer class has, read by ``functional.linear``; it returns a pair."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))
        self.bias = nn.Parameter(torch.randn(3)) if bias else None

    def scores(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = nn.functional.linear(x, self.weight, self.bias)
        return scores, scores.argmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x)[0]


class CenteredNorm(nn.Module):
    """A class of its own that normalises, with gain and bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True)
        return (1 + self.weight) * x / (1e-3 + x.norm(dim=-1, keepdim=True)) + self.bias


def _batch_norm() -> nn.Module:
    module = nn.BatchNorm1d(3)
    assert module.running_mean is not None and module.running_var is not None
    module.running_mean.copy_(torch.randn(3))
    module.running_var.copy_(torch.rand(3) + 0.5)
    return _jittered(module)


FACTORED: dict[str, Kind] = {
    "linear": _linear(lambda: nn.Linear(4, 3)),
    "linear_no_bias": _linear(lambda: nn.Linear(4, 3, bias=False)),
    "gpt2_conv1d": _linear(lambda: Conv1D(3, 4)),
    "conv1d": _conv(lambda: nn.Conv1d(2, 3, 3), (3,), (6,)),
    "conv1d_no_bias": _conv(lambda: nn.Conv1d(2, 3, 3, bias=False), (3,), (5,)),
    "conv1d_strided_dilated": _conv(lambda: nn.Conv1d(2, 3, 2, stride=2, dilation=2), (3,), (8,)),
    "conv1d_padded": _conv(_circular1(padding=1), (1,), (4,)),
    "conv2d": _conv(lambda: nn.Conv2d(2, 3, (2, 3)), (2, 3), (3, 4)),
    "conv2d_strided_dilated_padded": _conv(
        lambda: nn.Conv2d(
            2, 3, (2, 3), stride=(1, 2), dilation=(2, 1), padding=(1, 1), padding_mode="circular"
        ),
        (1, 1),
        (2, 4),
    ),
    "conv3d": _conv(lambda: nn.Conv3d(2, 3, (1, 2, 2), bias=False), (1, 2, 2), (2, 3, 2)),
    "conv3d_strided_dilated": _conv(
        lambda: nn.Conv3d(1, 3, 2, stride=(1, 1, 2), dilation=(2, 1, 1)), (3, 2, 2), (3, 3, 4), 1
    ),
    "embedding": _embedding(lambda: nn.Embedding(5, 3)),
    "embedding_padding_idx": _embedding(lambda: nn.Embedding(5, 3, padding_idx=0)),
    "embedding_shifted": _embedding(lambda: Shifted(7, 3, padding_idx=0)),
    "router": _linear(lambda: Router(bias=False)),
    "router_bias": _linear(lambda: Router(bias=True)),
}
"""Layer kinds with Kronecker factors."""
NORMALISED: dict[str, Kind] = {
    "layer_norm": Kind(
        lambda: _jittered(nn.LayerNorm(3)),
        one=lambda: torch.randn(1, 3),
        same=lambda: torch.randn(1, 3).repeat(POSITIONS, 1),
        many=lambda: torch.randn(POSITIONS, 3),
    ),
    "layer_norm_no_bias": Kind(
        lambda: _jittered(nn.LayerNorm(3, bias=False)),
        one=lambda: torch.randn(1, 3),
        same=lambda: torch.randn(1, 3).repeat(POSITIONS, 1),
        many=lambda: torch.randn(POSITIONS, 3),
    ),
    "rms_norm": Kind(
        lambda: _jittered(nn.RMSNorm(3)),
        one=lambda: torch.randn(1, 3),
        same=lambda: torch.randn(1, 3).repeat(POSITIONS, 1),
        many=lambda: torch.randn(POSITIONS, 3),
    ),
    "rms_norm_2d": Kind(
        lambda: _jittered(nn.RMSNorm((2, 3))),
        one=lambda: torch.randn(1, 2, 3),
        same=lambda: torch.randn(1, 2, 3).repeat(POSITIONS, 1, 1),
        many=lambda: torch.randn(POSITIONS, 2, 3),
    ),
    "centered_norm": Kind(
        CenteredNorm,
        one=lambda: torch.randn(1, 3),
        same=lambda: torch.randn(1, 3).repeat(POSITIONS, 1),
        many=lambda: torch.randn(POSITIONS, 3),
    ),
    "batch_norm": _conv(_batch_norm, (1,), (4,), channels=3),
    "group_norm": _conv(lambda: _jittered(nn.GroupNorm(2, 4)), (1, 2), (2, 3), channels=4),
    "layer_norm_2d": Kind(
        lambda: _jittered(nn.LayerNorm((2, 3))),
        one=lambda: torch.randn(1, 2, 3),
        same=lambda: torch.randn(1, 2, 3).repeat(POSITIONS, 1, 1),
        many=lambda: torch.randn(POSITIONS, 2, 3),
    ),
}
GROUPED: dict[str, Kind] = {
    "conv1d_grouped": _conv(lambda: nn.Conv1d(4, 6, 2, groups=2), (2,), (5,), channels=4),
    "conv2d_depthwise": _conv(
        lambda: nn.Conv2d(3, 3, 2, padding=1, stride=2, groups=3, bias=False),
        (2, 1),
        (3, 4),
        channels=3,
    ),
    "conv3d_grouped": _conv(
        lambda: nn.Conv3d(4, 6, (1, 2, 1), groups=2), (1, 2, 1), (2, 3, 1), channels=4
    ),
}
"""Convolutions by groups, whose curvature is diagonal."""
EVERY = FACTORED | NORMALISED | GROUPED


def _jittered(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    return module


BY_CHANNEL = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.GroupNorm)
"""Layers whose outputs have features before positions."""


class Probe(nn.Module):
    """One layer, read at its positions with given weights; nothing else is trainable.

    The logits are nonlinear in the layer's output, and every example has a context, so that
    examples with the same input still have different gradients.

    Args:
        layer: The layer.
        weights: How much each position counts in the pooled output; None for the mean.
    """

    def __init__(self, layer: nn.Module, weights: Tensor | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.weights = weights
        self.register_buffer("mix", torch.randn(6, CLASSES))

    def forward(self, x: Tensor, context: Tensor) -> SequenceClassifierOutput:
        out = self.layer(x)
        if isinstance(self.layer, BY_CHANNEL):
            out = out.flatten(2).mT
        out = out.flatten(2)  # [N, R, q]
        weights = torch.ones(out.shape[1]) / out.shape[1] if self.weights is None else self.weights
        pooled = torch.einsum("r,nrq->nq", weights, out)
        hidden = torch.tanh(pooled) * context[:, : pooled.shape[1]]
        return SequenceClassifierOutput(logits=hidden @ self.mix[: pooled.shape[1]])


def examples(inputs: Sequence[Tensor]) -> list[Example]:
    """Give every input a random context and label."""
    return [
        {"x": x, "context": torch.randn(6), "labels": torch.randint(CLASSES, ())} for x in inputs
    ]


class Mlp(nn.Module):
    """Layers of given widths with in-place activations between them, on ``x`` [N, widths[0]]."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths or (4, 5, CLASSES)):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
        self.net = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.net(x))


class Logits(nn.Module):
    """Any function of a module and the batch's ``x`` as a classifier."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.run(self, x))


def vectors(count: int, *shape: int) -> list[Example]:
    """Random inputs ``x`` with labels."""
    shape = shape or (4,)
    return [{"x": torch.randn(*shape), "labels": torch.randint(CLASSES, ())} for _ in range(count)]
