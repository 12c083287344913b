"""The consolidation penalty Σ_i λ_i (θ−θ*_i)ᵀ F_i (θ−θ*_i), value and gradient in one forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from ..curvature import Block, Operator
from ..errors import ConsolidationError
from ..priors import ConsolidationPrior

__all__ = ["ConsolidationPenalty", "bayesian_strength"]


def bayesian_strength(prior: ConsolidationPrior, num_new_examples: int) -> float:
    """Return λ = N_old / (2·N_new), at which penalty and loss are one posterior.

    The log-posterior is N_new·(mean new loss) + ½·N_old·ΔᵀFΔ; dividing by N_new gives λ
    (Kirkpatrick et al. 2017, Eq. 3, in this library's convention).

    Args:
        prior: Of the old task.
        num_new_examples: Training examples of the new task.

    Raises:
        ConsolidationError: The prior was made without data, or there are no new examples.
    """
    if not prior.provenance.num_examples or not num_new_examples:
        raise ConsolidationError(
            f"prior of task '{prior.task}' has {prior.provenance.num_examples} examples and the "
            f"new task {num_new_examples}, so there is no Bayesian strength; set `strengths`"
        )
    return prior.provenance.num_examples / (2 * num_new_examples)


class ConsolidationPenalty:
    """Σ_i λ_i Σ_blocks ⟨Δ, F_i·Δ⟩ with Δ = θ − θ*_i, of a model's present parameters.

    The parameters are taken once, here. Under FSDP2 the penalty must be made after wrapping and
    outside of forward and backward, where the module's parameters are temporary unsharded copies.

    Args:
        model: The model to be trained; unwrapped names, parameters may be FSDP2's DTensors.
        priors: Each fits the model (see :meth:`ConsolidationPrior.check`).
        strengths: λ of each prior.
        damping: Relative damping of every operator.
    """

    def __init__(
        self,
        model: nn.Module,
        priors: Sequence[ConsolidationPrior],
        strengths: Sequence[float],
        damping: float,
    ) -> None:
        named = dict(model.named_parameters())
        covered = {name for prior in priors for name in prior.anchor}
        self._parameters = {n: p for n, p in named.items() if n in covered}
        self._terms = [
            _Term(prior, strength, damping, named)
            for prior, strength in zip(priors, strengths, strict=True)
        ]

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Evaluate the penalty.

        Returns:
            The total, a scalar that carries its gradient, and the value of each prior, shape
            [priors], without gradient.
        """
        total, per_prior = _Penalty.apply(  # type: ignore[no-untyped-call]
            self._terms, list(self._parameters), *self._parameters.values()
        )
        return total, per_prior


class _Term:
    """One prior on the parameters' devices, damped, with its strength."""

    def __init__(
        self,
        prior: ConsolidationPrior,
        strength: float,
        damping: float,
        parameters: dict[str, nn.Parameter],
    ) -> None:
        self.strength = strength
        self.blocks: list[tuple[Block, Operator, Tensor]] = []
        for block in prior.curvature.blocks:
            weight = parameters[next(iter(block.shapes))]
            device, dtype = weight.device, _compute_dtype(weight)
            operator = block.operator.to(device, dtype)
            anchor = block.join(prior.anchor).to(device, dtype)
            self.blocks.append((block, operator.damped(damping) if damping else operator, anchor))

    def value_and_gradient(self, values: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return λ ΔᵀFΔ and its gradient 2λ·F·Δ: one product F·Δ gives both."""
        total: list[Tensor] = []
        gradients: dict[str, Tensor] = {}
        for block, operator, anchor in self.blocks:
            delta = block.join(block.covered(values)) - anchor
            product = self.strength * operator.apply(delta)
            total.append((delta * product).sum())
            gradients |= block.split(2 * product)
        return torch.stack(total).sum(), gradients


class _Penalty(torch.autograd.Function):
    """Computes the gradient with the value, so that backward only hands it over."""

    @staticmethod
    def forward(
        ctx: Any, terms: list[_Term], names: list[str], *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(parameters[0].device.type, enabled=False):
            values = {
                name: _full(p).to(_compute_dtype(p))
                for name, p in zip(names, parameters, strict=True)
            }
            gradients = {name: torch.zeros_like(value) for name, value in values.items()}
            totals = []
            for term in terms:
                total, gradient = term.value_and_gradient(values)
                totals.append(total)
                for name in gradients.keys() & gradient.keys():
                    gradients[name] += gradient[name]
        ctx.save_for_backward(
            *(_like(gradients[n], p) for n, p in zip(names, parameters, strict=True))
        )
        per_prior = torch.stack(totals)
        ctx.mark_non_differentiable(per_prior)
        return per_prior.sum(), per_prior

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(upstream[0].to(g.dtype) * g for g in ctx.saved_tensors)


def _compute_dtype(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)


def _full(parameter: Tensor) -> Tensor:
    parameter = parameter.detach()
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def _like(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Give a full gradient the dtype and the sharding of its parameter."""
    gradient = gradient.to(parameter.dtype)
    if not isinstance(parameter, DTensor):
        return gradient
    mesh = parameter.device_mesh
    replicated = DTensor.from_local(gradient, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated.redistribute(mesh, parameter.placements)
