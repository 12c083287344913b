"""Figure 1: where the penalties of one task lead the next, with two parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import default_collate
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_kfc.curvature import (
    Block,
    Curvature,
    CurvatureArguments,
    Kronecker,
    Operator,
    estimate_curvature,
    exact_block_fisher,
    per_example_gradients,
)

from .common import (
    Example,
    copy_parameters,
    displacement,
    mean_loss,
    quality,
    relative_error,
    rounded,
)

__all__ = ["two_parameters"]

_EXAMPLES = 400  # of either task
_GRID = 61


def two_parameters(seed: int = 0) -> dict[str, Any]:
    """Learn a new task next to an old one with two parameters, under each curvature (Figure 1).

    One linear unit without bias on two correlated inputs, logistic loss. The mean square of its
    output's gradient, p(1 − p), falls as the output grows, so that the Kronecker product is near
    the exact Fisher but not equal to it; the diagonal knows nothing of the inputs' correlation.
    Labels of the Fisher are ``exact``: for this model it is then the Hessian of the old loss.

    Args:
        seed: Of the two tasks.

    Returns:
        ``anchor``, the matrices and relative errors under ``fisher`` and ``errors``, the
        ``strength`` λ = N_old / (2 N_new), the ``end_points`` of new loss + λ ΔᵀFΔ with both
        losses there, and both losses on a ``grid``.
    """
    generator = torch.Generator().manual_seed(seed)
    data = _logistic_task([0.7, 0.0], 0.95, generator)
    new = default_collate(_logistic_task([-2.0, 0.0], 0.0, generator))
    old = default_collate(data)
    model = _LogisticUnit()
    _minimise(model, lambda: mean_loss(model, old))
    anchor = copy_parameters(model)
    at_anchor = _where(model, old, new)

    block, operators = _two_parameter_operators(model, data)
    matrices = {name: operator.matrix(1, 2) for name, operator in operators.items()}
    strength = len(old["labels"]) / (2 * len(new["labels"]))
    ends = {"none": _end_point(model, old, new)}
    for name, operator in operators.items():
        prior = Curvature((replace(block, operator=operator),), len(data))
        ends[name] = _end_point(model, old, new, prior, anchor, strength)
    return {
        "num_old": len(old["labels"]),
        "num_new": len(new["labels"]),
        "strength": strength,
        "anchor": at_anchor,
        "fisher": {name: matrix.tolist() for name, matrix in matrices.items()},
        "errors": {
            n: relative_error(matrices[n], matrices["full"]) for n in ("kronecker", "diagonal")
        },
        "end_points": ends,
        "grid": _loss_grid(old, new, [own["parameters"] for own in (at_anchor, *ends.values())]),
    }


class _LogisticUnit(nn.Module):
    """One linear unit; its two logits are 0 and z, so that the softmax is the logistic function."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = nn.Linear(2, 1, bias=False, dtype=torch.float64)
        nn.init.zeros_(self.unit.weight)

    def forward(self, x: Tensor) -> SequenceClassifierOutput:
        z = self.unit(x)
        return SequenceClassifierOutput(logits=torch.cat([torch.zeros_like(z), z], dim=-1))


def _logistic_task(
    weight: list[float], correlation: float, generator: torch.Generator
) -> list[Example]:
    """Draw inputs of unit variance and this correlation, and labels of a logistic unit."""
    covariance = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64)
    x = torch.randn(_EXAMPLES, 2, generator=generator, dtype=torch.float64)
    x = x @ torch.linalg.cholesky(covariance).T
    p = torch.sigmoid(x @ torch.tensor(weight, dtype=torch.float64))
    labels = torch.rand(_EXAMPLES, generator=generator, dtype=torch.float64) < p
    return [{"x": a, "labels": y} for a, y in zip(x, labels.long(), strict=True)]


def _minimise(model: nn.Module, objective: Callable[[], Tensor]) -> None:
    """Go to the minimum of a smooth convex function of a few parameters."""
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=200,
        tolerance_grad=1e-10,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]


def _two_parameter_operators(
    model: _LogisticUnit, data: list[Example]
) -> tuple[Block, dict[str, Operator]]:
    """Give the model's block, and its exact Fisher and both approximations by name."""
    (factored,), (diagonal,) = (
        estimate_curvature(
            model, data, default_collate, CurvatureArguments(curvature=kind, labels="exact")
        ).blocks
        for kind in ("kronecker", "diagonal")
    )
    gradients = per_example_gradients(model, data, default_collate, "exact")
    full = exact_block_fisher(gradients, len(data), Curvature((factored,), len(data)))["unit"]
    return factored, {
        # With one output every matrix is a Kronecker product: its own A, with G = 1.
        "full": Kronecker(full, full.new_ones(1, 1)),
        "kronecker": factored.operator,
        "diagonal": diagonal.operator,
    }


def _end_point(
    model: _LogisticUnit,
    old: Example,
    new: Example,
    prior: Curvature | None = None,
    anchor: Mapping[str, Tensor] | None = None,
    strength: float = 0.0,
) -> dict[str, Any]:
    """Minimise new loss + λ ΔᵀFΔ, and say where that is."""

    def objective() -> Tensor:
        loss = mean_loss(model, new)
        if prior is None or anchor is None:
            return loss
        return loss + strength * prior.quadratic(displacement(model, anchor))

    _minimise(model, objective)
    return _where(model, old, new)


def _where(model: _LogisticUnit, old: Example, new: Example) -> dict[str, Any]:
    return {
        "parameters": model.unit.weight[0].tolist(),
        "old_loss": quality(model, old)["loss"],
        "new_loss": quality(model, new)["loss"],
    }


@torch.no_grad()
def _loss_grid(old: Example, new: Example, points: list[list[float]]) -> dict[str, Any]:
    """Evaluate both losses on a grid around some points; rows are the second parameter."""
    ends = torch.tensor(points, dtype=torch.float64)
    low, high = ends.amin(0) - 1.5, ends.amax(0) + 1.5
    first, second = (
        torch.linspace(float(a), float(b), _GRID) for a, b in zip(low, high, strict=True)
    )
    losses = []
    for batch in (old, new):
        signs = 2 * batch["labels"].double() - 1  # −log p(y|x) = log(1 + exp(−z)), z times its sign
        weights = torch.cartesian_prod(second, first).flip(1).double()
        margins = (weights @ batch["x"].T) * signs
        losses.append(functional.softplus(-margins).mean(1).reshape(_GRID, _GRID))
    axes = {"first": rounded(first), "second": rounded(second)}
    return axes | {"old_loss": rounded(losses[0]), "new_loss": rounded(losses[1])}
