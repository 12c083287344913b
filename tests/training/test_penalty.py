"""The penalty's value and gradient equal plain autograd through the dense quadratic form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from dense_reference import DensePenalty
from tiny_models import KINDS, make_prior
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_kfc.curvature import OPERATORS
from hf_kfc.errors import ConsolidationError
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.training import ConsolidationPenalty, bayesian_strength


class Zoo(nn.Module):
    """Every kind of layer and every layout; its forward is not needed."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.linear = nn.Linear(3, 4)
        self.no_bias = nn.Linear(4, 2, bias=False)
        self.gpt2 = Conv1D(5, 4)
        self.convolution = nn.Conv1d(2, 3, 3)
        self.norm = nn.LayerNorm(6)


def zoo(dtype: torch.dtype = torch.float64) -> Zoo:
    torch.manual_seed(0)
    model = Zoo()
    for parameter in model.norm.parameters():
        nn.init.normal_(parameter)
    return model.to(dtype)


def evaluate(
    model: nn.Module,
    priors: Sequence[ConsolidationPrior],
    strengths: Sequence[float],
    damping: float = 0.1,
) -> tuple[Tensor, Tensor, dict[str, Tensor | None]]:
    """Total, value of each prior, and gradients."""
    total, values = ConsolidationPenalty(model, priors, strengths, damping)()
    total.backward()
    return total.detach(), values, {n: p.grad for n, p in model.named_parameters()}


def assert_equals_autograd(
    model: nn.Module,
    priors: Sequence[ConsolidationPrior],
    strengths: Sequence[float],
    damping: float,
) -> dict[str, Tensor | None]:
    total, values, gradients = evaluate(model, priors, strengths, damping)
    reference = torch.stack(
        DensePenalty(priors, strengths, damping)(dict(model.named_parameters()))
    )
    torch.testing.assert_close(values, reference.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(total, reference.detach().sum(), rtol=1e-10, atol=0)
    expected = torch.autograd.grad(
        reference.sum(), list(model.parameters()), allow_unused=True, materialize_grads=True
    )
    for (name, gradient), wanted in zip(gradients.items(), expected, strict=True):
        found = torch.zeros_like(wanted) if gradient is None else gradient
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12, msg=name)
    return gradients


@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("kind", [*KINDS, "mixed"])
def test_value_and_gradient(kind: str, damping: float) -> None:
    model = zoo()
    gradients = assert_equals_autograd(model, [make_prior(model, kind)], [0.7], damping)
    assert all(g is not None and bool((g != 0).all()) for g in gradients.values())


@pytest.mark.parametrize("damping", [0.0, 0.1])
def test_several_priors_that_overlap_in_part(damping: float) -> None:
    model = zoo()
    priors = [
        make_prior(model, "kronecker", seed=1, ignore=["norm.*", "linear.*", "gpt2.*"]),
        make_prior(model, "kronecker_eigen", seed=2, ignore=["norm.*", "embedding.*"]),
        make_prior(model, "mixed", seed=3, ignore=["norm.*", "convolution.*"]),
    ]
    gradients = assert_equals_autograd(model, priors, [0.7, 0.0, 2.5], damping)
    assert gradients["norm.weight"] is None and gradients["norm.bias"] is None


def test_l2_prior() -> None:
    model = zoo()
    prior = ConsolidationPrior.l2(model, task="old")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    total, _, gradients = evaluate(model, [prior], [3.0], damping=0.0)
    count = sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(total.item(), 3.0 * 0.25 * count)
    for gradient in gradients.values():
        assert gradient is not None
        torch.testing.assert_close(gradient, torch.full_like(gradient, 3.0))


def test_gradcheck() -> None:
    model = zoo()
    penalty = ConsolidationPenalty(model, [make_prior(model, "mixed")], [0.7], 0.1)
    assert torch.autograd.gradcheck(lambda *_: penalty()[0], tuple(model.parameters()))


def test_zero_at_the_anchor() -> None:
    model = zoo()
    total, _, gradients = evaluate(model, [make_prior(model, "mixed", distance=0.0)], [0.7])
    assert total.abs() < 1e-12
    assert all(g is not None and g.abs().max() < 1e-6 for g in gradients.values())


def test_one_product_per_block(monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = zoo(), []

    def counted(apply: Any) -> Any:
        return lambda self, delta: (calls.append(self), apply(self, delta))[1]

    for operator in OPERATORS.values():
        monkeypatch.setattr(operator, "apply", counted(operator.apply))
    priors = [make_prior(model, "mixed", seed=seed) for seed in (1, 2)]
    total, _ = ConsolidationPenalty(model, priors, [0.7, 0.2], 0.1)()
    blocks = sum(len(prior.curvature.blocks) for prior in priors)
    assert len(calls) == blocks
    total.backward()
    assert len(calls) == blocks


def test_follows_the_parameters_and_scales_with_the_loss() -> None:
    model = zoo()
    prior = make_prior(model, "kronecker")
    penalty = ConsolidationPenalty(model, [prior], [0.7], 0.1)
    penalty()
    with torch.no_grad():
        model.linear.weight += 1
    total, values = penalty()
    assert not values.requires_grad
    (reference,) = DensePenalty([prior], [0.7], 0.1)(dict(model.named_parameters()))
    torch.testing.assert_close(total, reference, rtol=1e-10, atol=0)
    (3 * total).backward()
    (expected,) = torch.autograd.grad(reference, [model.linear.weight])
    torch.testing.assert_close(model.linear.weight.grad, 3 * expected, rtol=1e-10, atol=0)


def test_frozen_parameters_count_but_get_no_gradient() -> None:
    model = zoo()
    prior = make_prior(model, "kronecker")
    expected = evaluate(model, [prior], [0.7])
    frozen = zoo()
    frozen.linear.requires_grad_(False)
    total, _, gradients = evaluate(frozen, [prior], [0.7])
    assert total == expected[0]
    assert gradients["linear.weight"] is None and gradients["linear.bias"] is None
    torch.testing.assert_close(gradients["gpt2.weight"], expected[2]["gpt2.weight"])


def test_autocast_changes_nothing() -> None:
    model = zoo(torch.float32)
    priors = [make_prior(model, kind) for kind in ("kronecker", "kronecker_eigen")]
    expected = evaluate(model, priors, [0.7, 0.2])
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, values, gradients = evaluate(model, priors, [0.7, 0.2])
    assert total.dtype == values.dtype == torch.float32
    assert total == expected[0] and torch.equal(values, expected[1])
    for name, gradient in gradients.items():
        assert gradient is not None and torch.equal(gradient, expected[2][name]), name


def test_bfloat16_parameters_are_computed_with_in_float32() -> None:
    model = zoo(torch.bfloat16)
    prior = make_prior(model, "kronecker")
    total, _, gradients = evaluate(model, [prior], [0.7])
    (reference,) = DensePenalty([prior], [0.7], 0.1)(dict(model.named_parameters()))
    assert total.dtype == torch.float32
    torch.testing.assert_close(total.double(), reference.detach(), rtol=1e-5, atol=0)
    expected = torch.autograd.grad(reference, list(model.parameters()))
    for (name, gradient), wanted in zip(gradients.items(), expected, strict=True):
        assert gradient is not None and gradient.dtype == torch.bfloat16
        torch.testing.assert_close(gradient, wanted, rtol=0.01, atol=1e-5, msg=name)


@pytest.mark.parametrize(("old", "new", "expected"), [(30, 10, 1.5), (10, 40, 0.125)])
def test_bayesian_strength(old: int, new: int, expected: float) -> None:
    assert bayesian_strength(make_prior(zoo(), num_examples=old), new) == expected


def test_no_bayesian_strength_without_examples() -> None:
    prior = ConsolidationPrior.l2(zoo(), task="old")
    with pytest.raises(ConsolidationError, match=r"'old' has 0 examples.*set `strengths`"):
        bayesian_strength(prior, 10)
    with pytest.raises(ConsolidationError, match=r"new task 0.*set `strengths`"):
        bayesian_strength(make_prior(zoo()), 0)
