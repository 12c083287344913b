"""What becomes of a penalty made of the Hessian's diagonal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import default_collate
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_kfc.curvature import (
    Curvature,
    CurvatureArguments,
    Diagonal,
    default_forward,
    estimate_curvature,
)

from .common import Example, copy_parameters, displacement, mean_loss, quality, train

__all__ = ["hessian_diagonal", "hessian_lesson"]

_STEPS, _RECORD_EVERY = 750, 15
_STRENGTHS = (0.5, 2.0, 8.0)  # N_old / (2 N_new) of tasks of one size, and multiples of it


def hessian_lesson() -> dict[str, Any]:
    """Learn a new task against a penalty made of the Hessian's diagonal, and of the Fisher's.

    A classifier with two hidden GELU layers learns an old task, not to the end, and then a new one
    in another part of its input space, by gradient descent on new loss + λ ΔᵀFΔ. A third penalty,
    the Hessian with its negative entries set to 0, shows that these alone are at fault. With the
    Hessian there is no minimum at any λ: along one parameter the loss grows no faster than the
    distance, and the penalty falls with its square. λ decides how soon that wrecks training.

    Returns:
        ``hessian`` and ``fisher``: size, share of negative entries and extremes of each diagonal;
        ``refusal``: why the library makes no prior of the Hessian; ``runs``: for each penalty and
        λ its value and both tasks' losses and accuracies by step.
    """
    data = _curved_task(0.0, 0.0, seed=0)
    old, new = (default_collate(own) for own in (data, _curved_task(3.0, 2.0, seed=1)))
    model = _Classifier()
    train(model, old, steps=20, learning_rate=0.02)
    anchor = copy_parameters(model)
    at_anchor = {"old": quality(model, old), "new": quality(model, new)}

    args = CurvatureArguments(curvature="diagonal")
    fisher = estimate_curvature(model, data, default_collate, args)
    hessian = _diagonal_curvature(fisher, hessian_diagonal(model, data))
    clamped = _diagonal_curvature(
        fisher, {n: h.clamp(min=0) for n, h in _diagonals(hessian).items()}
    )
    runs = [_learn(model, anchor, old, new, "none", fisher, 0.0)]
    for strength in _STRENGTHS:
        for name, own in (("fisher", fisher), ("hessian", hessian), ("clamped", clamped)):
            runs.append(_learn(model, anchor, old, new, name, own, strength))
    return {
        "bayesian_strength": len(old["labels"]) / (2 * len(new["labels"])),
        "at_anchor": at_anchor,
        "hessian": _extremes(hessian),
        "fisher": _extremes(fisher),
        "refusal": [
            f"{block.name}: {phrase}"
            for block in hessian.blocks
            for phrase in block.operator.problems(block.shape)
        ],
        "runs": runs,
    }


def hessian_diagonal(model: nn.Module, examples: Sequence[Example]) -> dict[str, Tensor]:
    """Compute the diagonal of the Hessian of the mean loss, d_j = ∂²/∂θ_j² mean_n −log p(y_n|x_n).

    Not a penalty, although ½ ΔᵀHΔ is the increase of the old loss to second order: short of full
    convergence, where the loss is not convex, H has negative entries on its diagonal. The penalty
    then rewards moving away without bound, and training is wrecked (:func:`hessian_lesson`). The
    Fisher, a mean of outer products of per-example gradients, is positive semi-definite by
    construction; with ``exact`` labels it is the Hessian if the logits are linear in the parameters
    (Martens 2020, arXiv:1412.1193).

    A feed-forward ReLU network, whose logits are piecewise linear in each single parameter, has no
    negative entry on the diagonal though H is indefinite; one with tanh or GELU has.

    Args:
        model: Called in evaluation mode; its operations must be differentiable twice.
        examples: All are one batch, so they are to be few.

    Returns:
        For every trainable parameter a tensor of its shape, by one backward pass per entry.
    """
    model.eval()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    outputs = default_forward(model, default_collate(list(examples)))
    classes = outputs.logits.shape[-1]
    loss = functional.cross_entropy(
        outputs.logits.reshape(-1, classes), outputs.labels.reshape(-1), reduction="sum"
    ) / len(examples)
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


class _Classifier(nn.Module):
    """Two inputs, two hidden layers, two classes."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Linear(2, 8)
            self.second = nn.Linear(8, 8)
            self.output = nn.Linear(8, 2)
        self.double()

    def forward(self, x: Tensor) -> SequenceClassifierOutput:
        hidden = functional.gelu(self.second(functional.gelu(self.first(x))))
        return SequenceClassifierOutput(logits=self.output(hidden))


def _curved_task(centre: float, phase: float, seed: int) -> list[Example]:
    """Draw inputs around a centre, in two classes on either side of a sine."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    labels = (x[:, 1] > torch.sin(2 * x[:, 0] + phase)).long()
    x = x + torch.tensor([centre, 0.0], dtype=torch.float64)
    return [{"x": a, "labels": y} for a, y in zip(x, labels, strict=True)]


def _diagonal_curvature(like: Curvature, diagonals: Mapping[str, Tensor]) -> Curvature:
    """Put other diagonals in the place of a curvature's operators."""
    blocks = [replace(b, operator=Diagonal(b.join(diagonals))) for b in like.blocks]
    return replace(like, blocks=tuple(blocks))


def _diagonals(curvature: Curvature) -> dict[str, Tensor]:
    return {
        name: part
        for block in curvature.blocks
        for name, part in block.split(block.operator.state()["diagonal"]).items()
    }


def _extremes(curvature: Curvature) -> dict[str, float]:
    entries = torch.cat([d.reshape(-1) for d in _diagonals(curvature).values()])
    return {
        "entries": len(entries),
        "negative_share": (entries < 0).double().mean().item(),
        "lowest": entries.min().item(),
        "highest": entries.max().item(),
    }


def _learn(
    model: nn.Module,
    anchor: Mapping[str, Tensor],
    old: Example,
    new: Example,
    penalty_name: str,
    curvature: Curvature,
    strength: float,
) -> dict[str, Any]:
    """Learn the new task from the anchor by plain gradient descent, and record what happens."""
    model.load_state_dict(dict(anchor))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    curves: dict[str, list[float]] = {
        key: []
        for key in ("step", "penalty", "old_loss", "old_accuracy", "new_loss", "new_accuracy")
    }
    for step in range(_STEPS + 1):
        penalty = strength * curvature.quadratic(displacement(model, anchor))
        if step % _RECORD_EVERY == 0:
            row = {"step": step, "penalty": penalty.item()}
            for task, batch in (("old", old), ("new", new)):
                row |= {f"{task}_{key}": v for key, v in quality(model, batch).items()}
            for key, value in row.items():
                curves[key].append(float(f"{value:.4g}"))
        optimizer.zero_grad()
        (mean_loss(model, new) + penalty).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {"penalty_of": penalty_name, "strength": strength, "curves": curves}
