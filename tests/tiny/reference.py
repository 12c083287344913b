"""What a penalty and a training step must be, by plain autograd in float64.

It shares no code with the library: candidates and positions are never padded, and the penalty is
vec(Δ)ᵀ F vec(Δ) with every F written out as a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hf_kfc.curvature import (
    Block,
    Diagonal,
    Kronecker,
    KroneckerEigen,
    KroneckerSum,
    Layout,
    LowRankKronecker,
    Operator,
)
from hf_kfc.priors import ConsolidationPrior


def dense(operator: Operator, q: int, p: int, damping: float) -> Tensor:
    """F of the row-major vectorisation of a [q, p] matrix, damped, in float64."""
    state = {name: tensor.double() for name, tensor in operator.state().items()}
    if isinstance(operator, Kronecker):
        factors = []
        for name in ("G", "A"):
            factor = state[name].diag() if state[name].ndim == 1 else state[name]
            mean = factor.diagonal().mean()
            factors.append(factor + damping * mean * torch.eye(len(factor)).double())
        return torch.kron(*factors)
    if isinstance(operator, LowRankKronecker):
        A, G = (state[f"{x}_U"] @ state[f"{x}_U"].T + state[f"{x}_d"].diag() for x in "AG")
        return dense(Kronecker(A, G), q, p, damping)
    if isinstance(operator, KroneckerSum):
        pairs = zip(operator.A, operator.G, strict=True)
        return torch.stack([dense(Kronecker(A, G), q, p, damping) for A, G in pairs]).sum(0)
    if isinstance(operator, KroneckerEigen):
        u_a = state["U_A"] if state["U_A"].ndim == 2 else torch.eye(p).double()
        basis = torch.kron(state["U_G"].contiguous(), u_a.contiguous())
        matrix = basis @ state["second_moments"].flatten().diag() @ basis.T
    elif isinstance(operator, Diagonal):
        matrix = state["diagonal"].flatten().diag()
    else:
        matrix = state["scale"] * torch.eye(q * p).double()
    return matrix + damping * matrix.diagonal().mean() * torch.eye(q * p).double()


def vector(block: Block, tensors: dict[str, Tensor]) -> Tensor:
    """The block's parameters as the row-major vector that its operator acts on."""
    weight, *bias = (tensors[name] for name in block.shapes)
    if block.layout is Layout.IN_OUT:
        weight = weight.T
    rows = weight.numel() if block.layout is Layout.ELEMENTWISE else len(weight)
    return torch.cat([weight.reshape(rows, -1), *(b.reshape(rows, 1) for b in bias)], 1).flatten()


class DensePenalty:
    """λ_i ΔᵀF_iΔ of each prior with F_i as one matrix per block, for plain autograd."""

    def __init__(
        self, priors: Sequence[ConsolidationPrior], strengths: Sequence[float], damping: float
    ) -> None:
        self.terms = [
            [
                (prior, block, strength * dense(block.operator, *block.shape, damping))
                for block in prior.curvature.blocks
            ]
            for prior, strength in zip(priors, strengths, strict=True)
        ]

    def __call__(self, parameters: dict[str, Tensor]) -> list[Tensor]:
        return [
            torch.stack([self._value(parameters, *block) for block in term]).sum()
            for term in self.terms
        ]

    @staticmethod
    def _value(
        parameters: dict[str, Tensor], prior: ConsolidationPrior, block: Block, matrix: Tensor
    ) -> Tensor:
        delta = vector(block, {n: parameters[n].double() - prior.anchor[n] for n in block.shapes})
        return delta @ matrix @ delta


def reference_task_loss(model: nn.Module, examples: Sequence[dict[str, Any]]) -> Tensor:
    """Mean cross entropy, each example alone and each candidate alone: nothing is padded."""
    losses = [-log_probabilities(model, e)[e["labels"]] for e in examples]
    return torch.stack(losses).mean()


def reference_divergence(
    model: nn.Module,
    anchor: nn.Module,
    examples: Sequence[dict[str, Any]],
    temperature: float = 1.0,
) -> Tensor:
    """Mean of T²·KL(anchor ‖ model) at T, each example alone and each candidate alone."""
    values = []
    for example in examples:
        with torch.no_grad():
            p = (log_probabilities(anchor, example) / temperature).log_softmax(0)
        q = (log_probabilities(model, example) / temperature).log_softmax(0)
        values.append((p.exp() * (p - q)).sum())
    return temperature**2 * torch.stack(values).mean()


def log_probabilities(model: nn.Module, example: dict[str, Any]) -> Tensor:
    """Of an example's candidates, each alone."""
    scores = []
    for ids, types in zip(example["input_ids"], example["token_type_ids"], strict=True):
        row = {"input_ids": torch.tensor([[ids]]), "token_type_ids": torch.tensor([[types]])}
        scores.append(model(attention_mask=torch.ones(1, 1, len(ids)), **row).logits[0, 0])
    return torch.stack(scores).log_softmax(0)


@dataclass
class Step:
    """One optimizer step as a reference sees it."""

    gradients: dict[str, Tensor]
    task_loss: float
    penalties: list[float]
    probe_loss: float = 0.0


def reference_step(
    model: nn.Module,
    parameters: dict[str, Tensor],
    batches: Sequence[Sequence[dict[str, Any]]],
    penalty: Callable[[dict[str, Tensor]], list[Tensor]],
    divergence: Callable[[nn.Module], Tensor] | None = None,
) -> Step:
    """Gradient of mean over all micro-batches of all processes + what counts once, in float64."""
    model.double().eval()  # there is no dropout
    model.load_state_dict(parameters, strict=False)
    model.zero_grad()
    task = torch.stack([reference_task_loss(model, batch) for batch in batches]).mean()
    penalties = torch.stack(penalty(dict(model.named_parameters())))
    probes = task.new_zeros(()) if divergence is None else divergence(model)
    (task + penalties.sum() + probes).backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return Step(gradients, task.item(), penalties.tolist(), probes.item())
