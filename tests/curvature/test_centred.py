"""Factors of whole gradients, within and between the uses: their formula, and where it is exact."""

from collections.abc import Mapping

import pytest
import torch
from tiny.curvatures import LABELS, assert_equal_matrices, dense, estimate, operators, oracle
from tiny.data import choices, pad_choices
from tiny.layers import BY_CHANNEL, FACTORED, Logits, Probe, examples, vectors
from tiny.models import bert
from torch import Tensor, nn

from hf_kfc.curvature import (
    Curvature,
    Family,
    Kronecker,
    Operator,
    Outputs,
    per_example_gradients,
    relative_difference,
)

N, POSITIONS = 4, 5
SIZES = {"many": (5, 4, 3), "few": (2, 30, 6)}  # positions: few go by ⟨a_r, a_s⟩ and ⟨g_r, g_s⟩


def product(X: Tensor) -> Tensor:
    """G ⊗ A with the partial traces of E[vec(X) vec(X)ᵀ], of X [N, q, p]."""
    A, G = (torch.einsum(formula, X, X) / len(X) for formula in ("nqi,nqj->ij", "nip,njp->ij"))
    return torch.kron(G, A) / A.trace()


# --- the formula, from gradients by autograd ---


@pytest.mark.parametrize("size", SIZES)
def test_parts_are_what_positions_differ_by_and_have_in_common(size: str) -> None:
    R, p, q = SIZES[size]
    model = Probe(nn.Linear(p, q), torch.randn(R))
    data = examples([torch.randn(R, p) for _ in range(N)])
    gradients = per_example_gradients(model, data, torch.utils.data.default_collate)
    whole = torch.cat([gradients["layer.weight"], gradients["layer.bias"][..., None]], dim=-1)
    mean = torch.stack([torch.cat([e["x"].mean(0), torch.ones(1)]) for e in data])
    between = gradients["layer.bias"][..., None] * mean[:, None]  # (Σ_r g_r) āᵀ
    expected = product(whole - between) + product(between)
    curvature = estimate(model, data, sharing="centred")
    assert [block.operator.kind for block in curvature.blocks] == ["kronecker_sum"]
    assert_equal_matrices(dense(curvature), {"layer": expected})


def test_a_token_seen_twice_adds_up_before_it_is_squared() -> None:
    model = Probe(nn.Embedding(5, 3), torch.randn(4))
    data = examples([torch.tensor([2, 4, 2, 1]), torch.tensor([1, 1, 1, 3])])
    rows = per_example_gradients(model, data, torch.utils.data.default_collate)["layer.weight"]
    A = rows.square().sum((0, 2)) / 2
    G = torch.einsum("nvi,nvj->ij", rows, rows) / 2
    (operator,) = operators(estimate(model, data, sharing="centred")).values()
    assert isinstance(operator, Kronecker)
    assert operator.stands_by_input
    torch.testing.assert_close(operator.matrix(3, 5), torch.kron(G, A.diag()) / A.sum())


# --- exact ---


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("kind", FACTORED)
def test_exact_for_equal_positions_however_they_are_read(kind: str, labels: str) -> None:
    """Where ``expand`` is (one position of equal ones is read) and where ``reduce`` is."""
    model = Probe(FACTORED[kind].build())
    data = examples([FACTORED[kind].same()] * N)
    out = model.layer(data[0]["x"][None])
    convolution = isinstance(model.layer, BY_CHANNEL)
    count = out[0, 0].numel() if convolution else out.shape[1]
    for weights in (torch.eye(count)[0], torch.randn(count)):
        model.weights = weights
        curvature = estimate(model, data, labels=labels, sharing="centred")
        assert_equal_matrices(dense(curvature), oracle(model, data, curvature, labels))


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("kind", [k for k in FACTORED if not k.startswith("embedding")])
def test_exact_for_mean_pooling(kind: str, labels: str) -> None:
    """As ``reduce``: what the positions differ by has no part in the gradient."""
    model = Probe(FACTORED[kind].build())
    data = examples([FACTORED[kind].many()] * N)
    curvature = estimate(model, data, labels=labels, sharing="centred")
    assert_equal_matrices(dense(curvature), oracle(model, data, curvature, labels))


def squared_errors(model: nn.Module, batch: Mapping[str, Tensor]) -> Outputs:
    logits = model(batch["x"]).logits
    return Outputs(logits, torch.zeros_like(logits), Family.GAUSSIAN)


def test_exact_for_a_deep_linear_network_that_decides_at_every_position() -> None:
    """As ``expand``: gradients of different positions are uncorrelated, and alike."""
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))
    model = Logits(lambda m, x: m.net(x), net=net)
    data = vectors(N, POSITIONS, 4)
    found = {
        sharing: estimate(model, data, sharing=sharing, labels="exact", forward=squared_errors)
        for sharing in ("expand", "centred")
    }
    rows = per_example_gradients(
        model, data, torch.utils.data.default_collate, "exact", forward=squared_errors
    )
    for name, block in ((b.name, b) for b in found["expand"].blocks):
        joined = torch.cat([rows[f"{name}.weight"], rows[f"{name}.bias"][..., None]], dim=-1)
        exact = torch.einsum("nqp,nrs->qprs", joined, joined).reshape(2 * [joined[0].numel()]) / N
        for sharing, curvature in found.items():
            own = operators(curvature)[name].matrix(*block.shape)
            torch.testing.assert_close(own, exact, msg=f"{sharing} of {name}")


def test_exact_for_a_linear_scorer_of_any_candidates() -> None:
    """One output: F is its own partial trace, however the candidates depend on each other."""
    model = Logits(lambda m, x: m.scorer(x).squeeze(-1), scorer=nn.Linear(6, 1))
    data = vectors(N, 3, 6)
    exact = oracle(model, data, estimate(model, data, sharing="centred"))
    bias = slice(0, 6)  # that of the bias is 0: scores are compared with each other only
    for sharing, right in (("centred", True), ("expand", False), ("reduce", False)):
        own = dense(estimate(model, data, sharing=sharing))["scorer"][bias, bias]
        assert torch.allclose(own, exact["scorer"][bias, bias]) == right, sharing


# --- what it is for ---


def test_nearer_to_the_exact_blocks_of_a_ranker() -> None:
    """Every block of a transformer with candidates, in sum and by far."""
    model, data = bert(), choices(6)
    errors: dict[str, float] = {}
    for sharing in ("expand", "reduce", "centred"):
        curvature = estimate(model, data, pad_choices(), sharing=sharing)
        exact = oracle(model, data, curvature, collator=pad_choices())
        found = {b.name for b in curvature.blocks if b.operator.kind != "diagonal"}
        errors[sharing] = sum(
            float((matrix - exact[name]).norm() / exact[name].norm())
            for name, matrix in dense(curvature).items()
            if name in found
        ) / len(found)
    assert errors["centred"] < 0.6 * errors["expand"]
    assert errors["centred"] < errors["reduce"]


def test_trace_is_that_of_both_parts() -> None:
    """The common part and the rest of a gradient are apart, but for what they have in common."""
    model, data = bert(), choices(5)
    curvature = estimate(model, data, pad_choices(), sharing="centred", labels="exact")
    exact = oracle(model, data, curvature, "exact", collator=pad_choices())
    traces = {b.name: float(b.operator.trace(b.shape)) for b in curvature.blocks}
    own, whole = sum(traces.values()), sum(float(m.trace()) for m in exact.values())
    assert 0.8 < own / whole < 1.25


# --- what must not matter ---


def test_no_gradient_is_no_curvature() -> None:
    """Of a layer whose output is not read; the other has some, so that F is not 0."""
    model = Logits(
        lambda m, x: m.used(x) + 0 * m.idle(x), used=nn.Linear(4, 3), idle=nn.Linear(4, 3)
    )
    found = operators(estimate(model, vectors(N), sharing="centred"))
    assert not found["idle"].matrix(3, 5).any()
    assert found["used"].matrix(3, 5).any()


def assert_near(one: Curvature, other: Curvature, error: float) -> None:
    mine, theirs = operators(one), operators(other)
    for block in one.blocks:
        difference = relative_difference(mine[block.name], theirs[block.name], block.shape)
        assert difference is not None
        assert difference < error, block.name


def test_half_precision_products_are_near() -> None:
    torch.set_default_dtype(torch.float32)
    model, data = bert(hidden_size=32), choices(6)
    full, half = (
        estimate(model, data, pad_choices(), sharing="centred", products=products)
        for products in ("full", "bfloat16")
    )
    assert_near(full, half, 0.05)
    kinds: list[Operator] = [block.operator for block in half.blocks]
    shapes = [block.shape for block in half.blocks]
    assert not [w for one, shape in zip(kinds, shapes, strict=True) for w in one.problems(shape)]
