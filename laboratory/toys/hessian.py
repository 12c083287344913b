"""The exact diagonal of the Hessian of a small model, for comparison with the Fisher's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hf_kfc.curvature import default_forward
from hf_kfc.curvature.objective import Forward

__all__ = ["hessian_diagonal"]


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
