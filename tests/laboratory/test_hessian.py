"""The Hessian's diagonal against autograd's Hessian, and why it is no penalty."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from curvature.conftest import float64
from tiny.curvatures import estimate
from tiny.layers import CLASSES, Example, Logits, Mlp, vectors
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from hf_kfc.curvature import Curvature, Diagonal, per_example_gradients
from hf_kfc.errors import PriorError
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.training.penalty import ConsolidationPenalty
from laboratory.toys.hessian_lesson import hessian_diagonal

__all__ = ["float64"]

default_collate = torch.utils.data.default_collate
N = 12


def smooth() -> Logits:
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, CLASSES))
    return Logits(lambda m, x: m.net(x), net=net)


def linear() -> Logits:
    return Logits(lambda m, x: m.only(x), only=nn.Linear(4, CLASSES))


def token_data() -> list[Example]:
    labels = torch.tensor([[0, 2, -100, 1], [1, -100, -100, 0], [2, 2, 1, 0]])
    return [{"x": torch.randn(4, 4), "labels": row} for row in labels]


def whole_hessian(model: nn.Module, data: list[Example]) -> Tensor:
    """By autograd's own function, of the losses added up one example at a time."""
    names, shapes = zip(*((n, p.shape) for n, p in model.named_parameters()), strict=True)
    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([shape.numel() for shape in shapes])
        values = {n: v.reshape(s) for n, v, s in zip(names, parts, shapes, strict=True)}
        total = torch.zeros(())
        for example in data:
            logits = functional_call(model, values, (example["x"].clone()[None],)).logits[0]
            total = total + functional.cross_entropy(logits, example["labels"], reduction="sum")
        return total / len(data)

    return torch.autograd.functional.hessian(loss, flat)


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors.values()])


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("build", [smooth, Mlp, linear])
def test_it_is_the_diagonal_of_autograds_hessian(
    build: Callable[[], nn.Module], tokens: bool
) -> None:
    model, data = build(), token_data() if tokens else vectors(N)
    actual = hessian_diagonal(model, data)
    assert {n: t.shape for n, t in actual.items()} == {
        n: p.shape for n, p in model.named_parameters()
    }
    expected = whole_hessian(model, data).diagonal()
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(flat(actual), expected, rtol=1e-9, atol=1e-12)


def test_unused_and_linear_parameters_are_zero_and_frozen_ones_left_out() -> None:
    model = Logits(
        lambda m, x: m.used(x), used=nn.Linear(4, 3), idle=nn.Linear(2, 2), frozen=nn.Linear(2, 2)
    )
    model.frozen.requires_grad_(False)
    actual = hessian_diagonal(model, vectors(N))
    assert set(actual) == {"used.weight", "used.bias", "idle.weight", "idle.bias"}
    assert actual["idle.weight"].shape == (2, 2)
    assert not actual["idle.weight"].any()
    assert all(not t.requires_grad for t in actual.values())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("labels", range(3))
def test_of_linear_logits_it_is_the_fisher_of_exact_labels(labels: int) -> None:
    """Whatever the data's labels and the parameters: H = Σ_n Jᵀ (diag(p) − p pᵀ) J."""
    torch.manual_seed(labels)
    model, data = linear(), vectors(N)
    hessian = hessian_diagonal(model, data)
    rows = per_example_gradients(model, data, default_collate, "exact")
    for name, gradients in rows.items():
        fisher = gradients.square().sum(0) / N
        torch.testing.assert_close(hessian[name], fisher, rtol=1e-10, atol=1e-14)
    (block,) = estimate(model, data, curvature="diagonal", labels="exact").blocks
    torch.testing.assert_close(
        block.join(hessian), block.operator.state()["diagonal"], rtol=1e-10, atol=1e-14
    )


def test_it_is_negative_where_the_loss_is_not_convex_and_the_fisher_never_is() -> None:
    model, data = smooth(), vectors(N)
    hessian = flat(hessian_diagonal(model, data))
    assert 0 < int((hessian < 0).sum()) < len(hessian)
    assert hessian.min() < -0.001
    fisher = estimate(model, data, curvature="diagonal")
    assert all(bool((b.operator.state()["diagonal"] >= 0).all()) for b in fisher.blocks)


def test_of_a_relu_network_it_is_not_negative_though_the_hessian_is_indefinite() -> None:
    model, data = Mlp(), vectors(N)
    assert flat(hessian_diagonal(model, data)).min() >= -1e-12
    assert torch.linalg.eigvalsh(whole_hessian(model, data))[0] < -0.001


def with_diagonal(curvature: Curvature, diagonal: dict[str, Tensor]) -> Curvature:
    blocks = [replace(b, operator=Diagonal(b.join(diagonal))) for b in curvature.blocks]
    return replace(curvature, blocks=tuple(blocks))


def test_no_prior_can_be_made_of_it() -> None:
    model, data = smooth(), vectors(N)
    prior = ConsolidationPrior.estimate(model, data, default_collate, task="old")
    hessian = with_diagonal(prior.curvature, hessian_diagonal(model, data))
    with pytest.raises(PriorError, match="diagonal has a negative entry"):
        ConsolidationPrior(prior.anchor, hessian, prior.provenance)


class Unchecked:
    """The parts of a prior, negative entries and all."""

    def __init__(self, curvature: Curvature, model: nn.Module) -> None:
        self.curvature = curvature
        self.anchor = {n: p.detach().clone() for n, p in model.named_parameters()}


def penalties(model: nn.Module, curvature: Curvature, new: dict[str, Tensor]) -> list[float]:
    """The penalty by step, of plain gradient descent on the new task from here."""
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    penalty = ConsolidationPenalty(model, [Unchecked(curvature, model)], [10.0], 0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    values = []
    for _ in range(1000):
        total, _ = penalty()
        values.append(float(total.detach()))
        optimizer.zero_grad()
        (functional.cross_entropy(model(new["x"]).logits, new["labels"]) + total).backward()
        optimizer.step()
    model.load_state_dict(start)
    return values


def test_training_against_it_runs_away_and_against_the_fisher_does_not() -> None:
    """Its negative entries alone do it: set to zero, they leave the penalty bounded."""
    model, data, new = smooth(), vectors(N), default_collate(vectors(N))
    fisher = estimate(model, data, curvature="diagonal")
    diagonal = hessian_diagonal(model, data)
    clamped = {name: d.clamp(min=0) for name, d in diagonal.items()}
    by_hessian = penalties(model, with_diagonal(fisher, diagonal), new)
    assert by_hessian[-1] < -1e3
    assert by_hessian[-1] < 2 * by_hessian[-100]  # and no end to it
    for curvature in (fisher, with_diagonal(fisher, clamped)):
        values = penalties(model, curvature, new)
        assert min(values) >= 0
        assert 0.001 < max(values) < 2
