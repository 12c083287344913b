"""What the toys share: losses, a little training, and numbers for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from math import floor, log10
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_kfc.curvature import default_forward

__all__ = [
    "Example",
    "copy_parameters",
    "displacement",
    "mean_loss",
    "quality",
    "relative_error",
    "rounded",
    "train",
]

Example = dict[str, Tensor]


def mean_loss(model: nn.Module, batch: Example) -> Tensor:
    """Return the mean cross entropy of a batch."""
    outputs = default_forward(model, batch)
    return functional.cross_entropy(outputs.logits, outputs.labels)


@torch.no_grad()
def quality(model: nn.Module, batch: Example) -> dict[str, float]:
    """Return loss and accuracy on a batch."""
    outputs = default_forward(model, batch)
    logits, labels = outputs.logits, outputs.labels
    return {
        "loss": functional.cross_entropy(logits, labels).item(),
        "accuracy": (logits.argmax(-1) == labels).double().mean().item(),
    }


def train(model: nn.Module, batch: Example, steps: int, learning_rate: float = 0.01) -> None:
    """Train by Adam on one batch, then set to evaluation."""
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        mean_loss(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()


def copy_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of every parameter."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def displacement(model: nn.Module, anchor: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return Δ of every parameter, with its graph."""
    return {name: p - anchor[name] for name, p in model.named_parameters()}


def relative_error(matrix: Tensor, exact: Tensor) -> float:
    """Return the relative Frobenius error of a matrix."""
    return float((matrix - exact).norm() / exact.norm())


def rounded(tensor: Tensor) -> Any:
    """Return nested lists, to four digits of the largest entry."""
    largest = float(tensor.abs().max()) or 1.0
    decimals = 3 - floor(log10(largest))
    if tensor.ndim > 1:
        return [[round(v, decimals) for v in row] for row in tensor.tolist()]
    return [round(v, decimals) for v in tensor.tolist()]
