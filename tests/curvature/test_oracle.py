"""The brute-force oracle against closed forms that share no code with it."""

import pytest
import torch
from tiny.curvatures import estimate as estimate_curvature
from tiny.curvatures import oracle
from tiny.layers import Example, Logits, Mlp, vectors
from torch import Tensor
from torch.func import functional_call, grad, jacrev
from torch.nn import functional

from hf_kfc.curvature import per_example_gradients

default_collate = torch.utils.data.default_collate
N = 4


def logits_of(model: torch.nn.Module, x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
    return functional_call(model, parameters, (x[None],)).logits[0]


def token_data() -> list[Example]:
    labels = torch.tensor([[0, 2, -100, 1], [1, -100, -100, 0], [2, 2, 1, 0]])
    return [{"x": torch.randn(4, 4), "labels": row} for row in labels]


def jacobians(model: torch.nn.Module, data: list[Example]) -> list[Tensor]:
    """One [..., parameters] Jacobian of the logits per example."""
    parameters = {k: p.detach() for k, p in model.named_parameters()}
    rows = []
    for example in data:
        jacobian = jacrev(lambda p, x=example["x"]: logits_of(model, x, p))(parameters)
        leading = example["labels"].ndim + 1
        rows.append(torch.cat([j.flatten(leading) for j in jacobian.values()], dim=-1))
    return rows


def fisher_of_rows(rows: dict[str, Tensor]) -> Tensor:
    flat = torch.cat([r.flatten(1) for r in rows.values()], dim=1)
    return flat.T @ flat


@pytest.mark.parametrize("tokens", [False, True])
def test_empirical_rows_are_gradients_of_the_cross_entropy(tokens: bool) -> None:
    model, data = Mlp(), token_data() if tokens else vectors(N)
    parameters = {k: p.detach() for k, p in model.named_parameters()}
    rows = per_example_gradients(model, data, default_collate)
    for index, example in enumerate(data):

        def loss(p: dict[str, Tensor], e: Example = example) -> Tensor:
            return functional.cross_entropy(
                logits_of(model, e["x"], p), e["labels"], reduction="sum"
            )

        for name, expected in grad(loss)(parameters).items():
            torch.testing.assert_close(rows[name][index], expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tokens", [False, True])
def test_exact_rows_give_the_closed_form(tokens: bool) -> None:
    """Σ rows rowsᵀ = Σ_n Σ_decisions Jᵀ (diag(p) − p pᵀ) J: decisions are independent."""
    model, data = Mlp(), token_data() if tokens else vectors(N)
    expected = torch.zeros(())
    for example, jacobian in zip(data, jacobians(model, data), strict=True):
        p = model(example["x"].clone()[None]).logits[0].detach().softmax(-1)
        labels, p, j = example["labels"].reshape(-1), p.reshape(-1, 3), jacobian
        for label, p_t, j_t in zip(labels, p, j.reshape(len(p), 3, -1), strict=True):
            if label != -100:
                expected = expected + j_t.T @ (p_t.diag() - p_t.outer(p_t)) @ j_t
    actual = fisher_of_rows(per_example_gradients(model, data, default_collate, "exact"))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_sampled_averages_to_exact() -> None:
    model, data = Mlp(), vectors(N)
    exact = fisher_of_rows(per_example_gradients(model, data, default_collate, "exact"))
    seeds = 600
    mean = torch.zeros_like(exact)
    for seed in range(seeds):
        rows = per_example_gradients(model, data, default_collate, "sampled", seed=seed)
        mean += fisher_of_rows(rows) / seeds
    assert (mean - exact).norm() < 0.1 * exact.norm()
    empirical = fisher_of_rows(per_example_gradients(model, data, default_collate))
    assert (empirical - exact).norm() > 0.2 * exact.norm()


def test_block_fisher_is_a_mean_over_examples_not_rows() -> None:
    model, data = Mlp(), vectors(N)
    curvature = estimate_curvature(model, data)
    blocks = oracle(model, data, curvature, "exact")
    whole = fisher_of_rows(per_example_gradients(model, data, default_collate, "exact")) / N
    trace = sum(float(b.trace()) for b in blocks.values())
    assert trace == pytest.approx(float(whole.trace()))


def test_unused_parameters_have_zero_gradients() -> None:
    model = Logits(lambda m, x: m.used(x), used=torch.nn.Linear(4, 3), idle=torch.nn.Linear(2, 2))
    rows = per_example_gradients(model, vectors(N), default_collate)
    assert rows["idle.weight"].shape == (N, 2, 2)
    assert not rows["idle.weight"].any()
