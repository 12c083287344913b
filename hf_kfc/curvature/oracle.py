"""The exact Fisher of a small model, by brute force: what every approximation is tested against.

Independent of the estimator: examples one at a time, gradients of the log-likelihood with respect
to the parameters by plain autograd, no hooks. The Hessian is here for comparison only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..curvature_arguments import Labels
from .blocks import Curvature
from .objective import Forward, default_forward, logit_gradients

__all__ = ["exact_block_fisher", "hessian_diagonal", "per_example_gradients"]


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
                rows[name].append(gradient)
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


def hessian_diagonal(
    model: nn.Module,
    dataset: Any,
    data_collator: Callable[[list[Any]], Mapping[str, Tensor]],
    *,
    forward: Forward = default_forward,
) -> dict[str, Tensor]:
    """Compute the diagonal of the Hessian of the mean loss, d_j = ∂²/∂θ_j² mean_n −log p(y_n|x_n).

    Not a penalty, although ½ ΔᵀHΔ is the increase of the old loss to second order: short of full
    convergence, where the loss is not convex, H has negative entries on its diagonal. The penalty
    then rewards moving away without bound, and training is wrecked
    (:func:`~laboratory.toys.hessian_lesson` shows it). The Fisher, a mean of outer products
    of per-example gradients, is positive semi-definite by construction; with ``exact`` labels it is
    the Hessian if the logits are linear in the parameters (Martens 2020, arXiv:1412.1193).

    A feed-forward ReLU network, whose logits are piecewise linear in each single parameter, has no
    negative entry on the diagonal though H is indefinite; one with tanh or GELU has.

    Args:
        model: Called in evaluation mode; its operations must be differentiable twice.
        dataset: Examples by index, with a length N; all are one batch, so N is to be small.
        data_collator: Makes a batch of a list of examples.
        forward: Runs the model on a batch.

    Returns:
        For every trainable parameter a tensor of its shape, by one backward pass per entry.
    """
    model.eval()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    outputs = forward(model, data_collator([dataset[index] for index in range(len(dataset))]))
    classes = outputs.logits.shape[-1]
    loss = functional.cross_entropy(
        outputs.logits.reshape(-1, classes), outputs.labels.reshape(-1), reduction="sum"
    ) / len(dataset)
    gradients = torch.autograd.grad(
        loss, list(parameters.values()), create_graph=True, materialize_grads=True
    )
    return {
        name: _second_derivatives(gradient, parameter)
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True)
    }


def _second_derivatives(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Differentiate every entry of a gradient by its own parameter once more."""
    diagonal = torch.zeros_like(parameter).reshape(-1)
    if gradient.requires_grad:  # else the loss is linear in the parameter, or free of it
        for j, entry in enumerate(gradient.reshape(-1)):
            (row,) = torch.autograd.grad(
                entry, parameter, retain_graph=True, materialize_grads=True
            )
            diagonal[j] = row.reshape(-1)[j]
    return diagonal.reshape(parameter.shape).detach()
