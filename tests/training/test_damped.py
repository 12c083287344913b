"""Products with damped curvatures equal those of the damped operators, and copy no factors."""

from __future__ import annotations

import pytest
import torch
from tiny.priors import make_operator
from torch import Tensor

from hf_kfc.curvature import OPERATORS, Operator
from hf_kfc.curvature.operators import (
    KroneckerStack,
    KroneckerSum,
    LowRankKronecker,
    LowRankKroneckerStack,
    LowRankKroneckerSum,
)
from hf_kfc.training.damped import Placement, Product

Q, P = 5, 7
SAMPLED = ("identity", "diagonal", "kronecker", "kronecker_eigen")


def operators(kind: str, q: int = Q, p: int = P) -> list[Operator]:
    """Operators of a kind, with input factors as matrices and as vectors."""
    generator = torch.Generator().manual_seed(1)

    def rand(*size: int) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64)

    if kind in SAMPLED:
        return [make_operator(kind, (q, p), diagonal_a, 0) for diagonal_a in (False, True)]
    parts = [make_operator("kronecker", (q, p), False, seed).state() for seed in (0, 1, 2)]
    if kind == "kronecker_sum":
        A, G = (torch.stack([part[name] for part in parts]) for name in ("A", "G"))
        return [KroneckerSum(A, G), KroneckerSum(rand(3, p), G), KroneckerSum(A, rand(3, q))]
    if kind == "kronecker_stack":
        return [KroneckerStack.of(operators("kronecker_sum", 1, p)[:1] * q)]
    if kind == "low_rank_kronecker_stack":
        return [LowRankKroneckerStack.of(operators("low_rank_kronecker_sum", 1, p)[:1] * q)]
    if kind == "low_rank_kronecker_sum":
        G_U, G_d = rand(2, q, 2), rand(2, q)
        return [LowRankKroneckerSum(rand(2, p, k), rand(2, p), G_U, G_d) for k in (3, 0)]
    assert kind == "low_rank_kronecker"
    G_U, G_d = rand(q, 2), rand(q)
    return [LowRankKronecker(rand(p, k), rand(p), G_U, G_d) for k in (3, 0)]


def make_product(
    operator: Operator,
    damping: float,
    inputs_are_rows: bool = False,
    low: torch.dtype | None = None,
    shape: tuple[int, int] = (Q, P),
) -> Product:
    return Product(operator, shape, damping, inputs_are_rows, Placement(low), torch.device("cpu"))


def displacement(q: int = Q, p: int = P) -> Tensor:
    return torch.randn(q, p, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("kind", OPERATORS)
def test_is_that_of_the_damped_operator(kind: str, damping: float) -> None:
    delta = displacement()
    before = delta.clone()
    for operator in operators(kind):
        expected = operator.damped(damping).apply(delta)
        torch.testing.assert_close(make_product(operator, damping)(delta), expected)
        by_rows = make_product(operator, damping, inputs_are_rows=True)(delta.T.contiguous())
        torch.testing.assert_close(by_rows, expected.T)
    assert torch.equal(delta, before)


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("kind", OPERATORS)
def test_of_some_inputs(kind: str, damping: float) -> None:
    rows, delta = torch.tensor([1, 4, 6]), torch.zeros(Q, P).double()
    delta[:, rows] = displacement()[:, rows]
    standing_alone = [operator for operator in operators(kind) if operator.stands_by_input]
    assert bool(standing_alone) != (kind == "identity" or kind.endswith("stack"))
    for operator in standing_alone:
        expected = operator.damped(damping).apply(delta)
        assert (expected == 0).all(0).sum() == P - len(rows)
        product = make_product(operator, damping, inputs_are_rows=True)
        found = product(delta.T[rows].contiguous(), rows)
        torch.testing.assert_close(found, expected.T[rows])


@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_inputs_without_curvature(damping: float) -> None:
    operator = make_operator("kronecker", (Q, P), True, 0)
    operator.state()["A"][2] = 0
    live = make_product(operator, damping).live_inputs()
    if damping:
        assert live is None
    else:
        assert live is not None and live.tolist() == [True, True, False, True, True, True, True]
    assert make_product(operators("kronecker")[0], 0.0).live_inputs() is None


@pytest.mark.parametrize("kind", OPERATORS)
def test_no_matrix_is_copied(kind: str) -> None:
    for operator in operators(kind):
        product = make_product(operator, 0.3)
        held = [factor.values for pair in product.factors for factor in pair]
        if not held:
            held = [t for t in product.operator.state().values() if t.ndim > 1]
        given = {t.untyped_storage().data_ptr() for t in operator.state().values()}
        assert {t.untyped_storage().data_ptr() for t in held} <= given


@pytest.mark.parametrize("kind", OPERATORS)
def test_what_is_stored_in_few_bits_is_multiplied_in_many(kind: str) -> None:
    """As if it had been stored in the dtype of Δ: the digits that are left are all used."""
    for operator in operators(kind):
        stored = operator.to(dtype=torch.bfloat16)
        found = make_product(stored, 0.3)(displacement())
        expected = make_product(stored.to(dtype=torch.float64), 0.3)(displacement())
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_what_layers_share_is_moved_once() -> None:
    first, second = (make_operator("kronecker", (Q, P), False, 0).state() for _ in range(2))
    second["A"] = first["A"]
    placement = Placement()
    placed = [
        placement.operator(OPERATORS["kronecker"].from_state(s), torch.device("meta"))
        for s in (first, second)
    ]
    assert placed[0].state()["A"].is_meta
    assert placed[0].state()["A"] is placed[1].state()["A"]
    assert placed[0].state()["G"] is not placed[1].state()["G"]


@pytest.mark.parametrize("kind", OPERATORS)
def test_bfloat16(kind: str) -> None:
    """The bound that the argument states, and exactly float32 where there is no matrix.

    It is one of ‖F‖·‖Δ‖: where the curvature is least, the product is small and the error is not.
    """
    q, p = 12, 20
    for operator in operators(kind, q, p):
        damped = operator.to(dtype=torch.float64).damped(0.1)
        eigenvalues, directions = torch.linalg.eigh(damped.matrix(q, p))
        product = make_product(operator, 0.1, low=torch.bfloat16, shape=(q, p))
        for delta in (displacement(q, p), directions[:, 0].reshape(q, p)):
            found = product(delta.float())
            assert found.dtype == torch.float32
            error = (found - damped.apply(delta)).norm() / (eigenvalues[-1] * delta.norm())
            assert error < (1e-6 if kind in ("identity", "diagonal") else 0.01)
        exact = make_product(operator, 0.1)(delta.float())
        assert torch.equal(found, exact) == (kind in ("identity", "diagonal"))


@pytest.mark.parametrize(
    ("kind", "multiplications"),
    [("identity", 0), ("diagonal", 0), ("kronecker", Q + P), ("kronecker_sum", 3 * (Q + P))],
)
def test_cost(kind: str, multiplications: int) -> None:
    assert operators(kind)[0].cost((Q, P)) == Q * P * (1 + multiplications)


@pytest.mark.parametrize("kind", ["kronecker", "kronecker_sum", "low_rank_kronecker"])
def test_only_tokens_seen_count_in_the_cost_of_an_embedding(kind: str) -> None:
    operator = next(one for one in operators(kind) if one.stands_by_input)
    whole = operator.cost((Q, P))
    for name in operator.input_names:
        operator.state()[name][..., :3] = 0
    assert operator.cost((Q, P)) == whole * (P - 3) / P
