"""The penalty's value and gradient equal plain autograd through the dense quadratic form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny.priors import KINDS, make_prior
from tiny.reference import DensePenalty, dense
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hf_kfc.curvature import Curvature
from hf_kfc.errors import ConsolidationError
from hf_kfc.priors import ConsolidationPrior, Provenance
from hf_kfc.training import ConsolidationPenalty, bayesian_strength, terms
from hf_kfc.training.damped import Product


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
    """Total, value of each prior, and gradients, also where they are a part of a loss."""
    penalty = ConsolidationPenalty(model, priors, strengths, damping)
    model.zero_grad()
    total, values = penalty()
    total.backward()
    gradients = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}
    (2 * penalty()[0]).backward()
    for name, parameter in model.named_parameters():
        if (gradient := gradients[name]) is not None:
            torch.testing.assert_close(parameter.grad, 3 * gradient)
    return total.detach(), values, gradients


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

    multiply = Product.__call__

    def counted(product: Product, *args: Any) -> Tensor:
        calls.append(product)
        return multiply(product, *args)

    monkeypatch.setattr(Product, "__call__", counted)
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
    with pytest.raises(ConsolidationError, match=r"the new task none.*set `strengths`"):
        bayesian_strength(make_prior(zoo()), 0)


# Embeddings, of which only rows that have moved are multiplied


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 3)


def moved_tokens(moved: Sequence[int]) -> tuple[Tokens, Tensor]:
    """A model of embeddings some of which have moved since, and the anchor."""
    torch.manual_seed(0)
    model = Tokens().double()
    model.embedding.weight.data = model.embedding.weight.data.float().double()
    anchor = model.embedding.weight.detach().float()
    with torch.no_grad():
        model.embedding.weight[list(moved)] += torch.randn(len(moved), 3).double()
    return model, anchor


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each product had."""
    multiply, rows = Product.__call__, list[int]()

    def noted(product: Product, delta: Tensor, inputs: Tensor | None = None) -> Tensor:
        rows.append(len(delta))
        return multiply(product, delta, inputs)

    monkeypatch.setattr(Product, "__call__", noted)
    return rows


@pytest.mark.parametrize("damping", [0.0, 0.1])
@pytest.mark.parametrize("kind", ["diagonal", "kronecker", "kronecker_eigen"])
@pytest.mark.parametrize("moved", [[], [1, 4, 5], list(range(9))], ids=["none", "some", "all"])
@pytest.mark.parametrize("covered", [None, [0, 1, 2, 4, 8]], ids=["all_rows", "kept_rows"])
def test_rows_that_have_moved(
    covered: list[int] | None,
    moved: list[int],
    kind: str,
    damping: float,
    multiplied: list[int],
) -> None:
    model, anchor = moved_tokens(moved)
    (block,) = make_prior(model, kind).curvature.blocks
    dropped = sorted(set(range(9)) - set(range(9) if covered is None else covered))
    if covered is not None:
        block, anchor = block.of_inputs(torch.tensor(covered)), anchor[covered]
    prior = ConsolidationPrior(
        {"embedding.weight": anchor}, Curvature((block,), 30), Provenance("old", num_examples=30)
    )
    total, _, gradients = evaluate(model, [prior], [0.7], damping)
    assert set(multiplied) == {len(set(moved) - set(dropped))}

    weight = model.embedding.weight.detach().clone().requires_grad_()
    kept = weight if covered is None else weight[covered]
    matrix = 0.7 * dense(block.operator, *block.shape, damping)
    vectorised = (kept - anchor).T.flatten()
    reference = vectorised @ matrix @ vectorised
    torch.testing.assert_close(total, reference.detach(), rtol=1e-10, atol=0)
    (expected,) = torch.autograd.grad(reference, weight)
    found = gradients["embedding.weight"]
    assert found is not None
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert bool((found[dropped] == 0).all())


def test_rows_are_not_looked_for_once_most_have_moved(
    multiplied: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts of two rows: found in the first step, all multiplied in the next, both exact."""
    monkeypatch.setattr(terms, "_ROWS", 2)
    model, anchor = moved_tokens(range(1, 9))
    prior = make_prior(model, "kronecker", distance=0.0)
    prior.anchor["embedding.weight"] = anchor
    assert_equals_autograd(model, [prior], [0.7], 0.1)
    assert multiplied == [8, 9]


@pytest.mark.parametrize(("damping", "count"), [(0.0, 2), (0.1, 3)])
def test_rows_without_curvature(damping: float, count: int, multiplied: list[int]) -> None:
    model, anchor = moved_tokens([1, 4, 5])
    prior = make_prior(model, "kronecker", distance=0.0)
    prior.anchor["embedding.weight"] = anchor
    prior.curvature.blocks[0].operator.state()["A"][4] = 0
    assert_equals_autograd(model, [prior], [0.7], damping)
    assert set(multiplied) == {count}


# What is held in memory


def test_anchors_are_the_priors_own_and_frozen_blocks_are_not_placed() -> None:
    model = zoo(torch.float32)
    prior = make_prior(model, "kronecker", distance=0.0)
    model.gpt2.requires_grad_(False)
    with torch.no_grad():
        model.linear.weight += 1
    penalty = ConsolidationPenalty(model, [prior], [0.7], 0.1)
    penalty()[0].backward()
    terms = {term.names[0]: term for layer in penalty._layers for term in layer}
    held = [anchor for term in terms.values() for anchor in term._anchors]
    assert {id(a) for a in held} == {id(a) for a in prior.anchor.values()}
    assert terms["gpt2.weight"].stays and terms["gpt2.weight"]._product is None
    assert not terms["linear.weight"].stays and terms["linear.weight"]._product is not None


def test_a_frozen_block_counts_again_when_it_is_trained() -> None:
    model = zoo()
    prior = make_prior(model, "kronecker", distance=0.0)
    model.load_state_dict({**model.state_dict(), **prior.anchor})
    model.linear.requires_grad_(False)
    penalty = ConsolidationPenalty(model, [prior], [0.7], 0.1)
    assert penalty()[0] == 0
    model.linear.requires_grad_(True)
    with torch.no_grad():
        model.linear.weight += 1
    (reference,) = DensePenalty([prior], [0.7], 0.1)(dict(model.named_parameters()))
    assert reference > 0
    torch.testing.assert_close(penalty()[0], reference, rtol=1e-10, atol=0)


def test_bfloat16_products() -> None:
    """A random displacement: near the exact gradient layer by layer, and not the same."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(300, 64), nn.Linear(64, 96), Conv1D(64, 96))
    for kind in ("kronecker", "kronecker_eigen"):
        prior = make_prior(model, kind)
        exact = evaluate(model, [prior], [0.7])[2]
        penalty = ConsolidationPenalty(model, [prior], [0.7], 0.1, dtype=torch.bfloat16)
        model.zero_grad()
        penalty()[0].backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and (wanted := exact[name]) is not None
            assert parameter.grad.dtype == torch.float32
            assert 1e-5 < (parameter.grad - wanted).norm() / wanted.norm() < 0.01, name
