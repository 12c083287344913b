"""Solving F·x = b against dense solutions in float64."""

import pytest
import torch
from torch import Tensor

from hf_kfc.curvature import (
    Diagonal,
    Identity,
    Kronecker,
    KroneckerEigen,
    KroneckerSum,
    LowRankKronecker,
    Operator,
)

from .test_nearest_sum import P, Q, moment, products


def stacked(operators: list[Kronecker]) -> KroneckerSum:
    return KroneckerSum(
        torch.stack([o.A for o in operators]), torch.stack([o.G for o in operators])
    )


def operators() -> dict[str, Operator]:
    torch.manual_seed(0)
    return {
        "identity": Identity(torch.tensor(0.3)),
        "diagonal": Diagonal(torch.rand(Q, P) + 0.1),
        "kronecker": products(1)[0].damped(0.1),
        "low_rank": LowRankKronecker(
            torch.randn(P, 1), torch.rand(P) + 0.1, torch.randn(Q, 1), torch.rand(Q) + 0.1
        ),
        "sum": stacked(products(4)).damped(0.1),
        "sum_scaled": stacked([Kronecker(1e5 * o.A, 1e-12 * o.G) for o in products(4)]).damped(0.1),
        "embedding": KroneckerSum(torch.rand(3, P), stacked(products(3)).G).damped(0.1),
        "eigen": KroneckerEigen(
            torch.linalg.qr(torch.randn(P, P)).Q,
            torch.linalg.qr(torch.randn(Q, Q)).Q,
            torch.rand(Q, P) + 0.1,
        ),
        "vector_G": KroneckerSum(stacked(products(3)).A, torch.rand(3, Q)).damped(0.1),
    }


@pytest.mark.parametrize("name", operators())
def test_solutions_are_those_of_the_dense_matrix(name: str) -> None:
    operator, b = operators()[name], torch.randn(Q, P)
    found = operator.solve(b)
    expected = torch.linalg.solve(operator.matrix(Q, P), b.reshape(-1)).reshape(Q, P)
    torch.testing.assert_close(found.x, expected, rtol=1e-6, atol=1e-6 * float(expected.norm()))
    assert found.residual < 1e-7
    measured = float((b - operator.apply(found.x)).norm() / b.norm())
    assert found.residual == pytest.approx(measured, abs=1e-12)


def test_one_product_takes_one_step() -> None:
    A, G = moment(40, 400), moment(30, 300)
    found = Kronecker(A, G).solve(torch.randn(30, 40))
    assert found.iterations == 1
    many = stacked(products(4, 30, 40)).damped(0.1).solve(torch.randn(30, 40))
    assert 1 < many.iterations < 100


def test_singular_directions_stay_at_zero() -> None:
    """Rank-deficient factors without damping; b is in the range, as that of a merge is."""
    basis = torch.linalg.qr(torch.randn(P, P)).Q
    A, G = basis[:, :2] @ basis[:, :2].T, moment(Q, 6)
    operator = Kronecker(A, G)
    target = torch.randn(Q, P)
    found = operator.solve(operator.apply(target))
    torch.testing.assert_close(found.x @ basis[:, 2:], torch.zeros(Q, 2))
    torch.testing.assert_close(found.x @ basis[:, :2], target @ basis[:, :2])
    free = Diagonal(torch.tensor([[2.0, 0.0]])).solve(torch.tensor([[4.0, 0.0]]))
    assert free.x.tolist() == [[2.0, 0.0]]


@pytest.mark.parametrize(
    "operator",
    [
        Diagonal(torch.zeros(Q, P)),
        Kronecker(torch.zeros(P, P), torch.eye(Q)),
        KroneckerSum(torch.eye(P).repeat(2, 1, 1), torch.zeros(2, Q, Q)),
        Kronecker(torch.diag(torch.tensor([1.0, 1.0, 0.0, -1e-9])), torch.eye(Q)),
    ],
)
def test_what_has_no_solution_has_a_residual_and_no_nan(operator: Operator) -> None:
    b = torch.zeros(Q, P)
    b[:, -1] = 1
    found = operator.solve(b)
    assert bool(found.x.isfinite().all())
    assert found.residual == pytest.approx(1.0)
    assert operator.solve(torch.zeros(Q, P)).residual == 0


def test_float32_is_solved_in_float64() -> None:
    operator = operators()["sum"].to(dtype=torch.float32)
    b: Tensor = torch.randn(Q, P).float()
    found = operator.solve(b)
    assert found.x.dtype == torch.float64
    assert found.residual < 1e-7
