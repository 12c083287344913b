"""The exact Fisher of a small model, by brute force: what every approximation is tested against.

Independent of the estimator: examples one at a time, gradients of the log-likelihood with respect
to the parameters by plain autograd, no hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..curvature_arguments import Labels
from .blocks import Curvature
from .likelihood import logit_gradients
from .modes import without_cache
from .objective import Forward, default_forward

__all__ = ["exact_block_fisher", "per_example_gradients"]


def per_example_gradients(
    model: nn.Module,
    dataset: Any,
    data_collator: Callable[[list[Any]], Mapping[str, Tensor]],
    labels: str = "empirical",
    *,
    seed: int = 0,
    forward: Forward = default_forward,
) -> dict[str, Tensor]:
    """Compute the gradient of the log-likelihood of every example, one example at a time.

    Args:
        model: Called in evaluation mode.
        dataset: Examples by index, with a length N.
        data_collator: Makes a batch of a list of examples.
        labels: Label kind; with ``exact`` each example has several weighted gradients.
        seed: Of sampled labels.
        forward: Runs the model on a batch.

    Returns:
        For every trainable parameter a tensor ``[M, *shape]`` with M ≥ N rows; the Fisher is
        the sum over rows of their outer products, divided by N.
    """
    model.eval()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows: dict[str, list[Tensor]] = {name: [] for name in parameters}
    for index in range(len(dataset)):
        with without_cache(model):
            outputs = forward(model, data_collator([dataset[index]]))
        for v in logit_gradients(outputs, Labels(labels), [index], seed):
            gradients = torch.autograd.grad(
                outputs.logits,
                list(parameters.values()),
                v,
                retain_graph=True,
                materialize_grads=True,
            )
            for name, gradient in zip(parameters, gradients, strict=True):
                rows[name].append(gradient.to_dense())
    return {name: torch.stack(gradients) for name, gradients in rows.items()}


def exact_block_fisher(
    gradients: Mapping[str, Tensor], num_examples: int, curvature: Curvature
) -> dict[str, Tensor]:
    """Build the exact Fisher of every block of a curvature.

    Args:
        gradients: From :func:`per_example_gradients`.
        num_examples: N.
        curvature: Says which parameters form a block, and how.

    Returns:
        By block name, a dense matrix [q·p, q·p] over the row-major vectorisation of the block.
    """
    fishers = {}
    for block in curvature.blocks:
        count = len(gradients[next(iter(block.shapes))])
        rows = torch.stack(
            [
                block.join({name: gradients[name][i] for name in block.shapes}).reshape(-1)
                for i in range(count)
            ]
        )
        fishers[block.name] = rows.T @ rows / num_examples
    return fishers
