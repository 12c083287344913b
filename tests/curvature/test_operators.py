"""Operators are the symmetric positive semi-definite maps that their formulas say."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_kfc.curvature import OPERATORS, Diagonal, Identity, Kronecker, KroneckerEigen, Operator

from .tiny import KINDS, bert, choices, estimate, pad_choices


def psd(size: int) -> Tensor:
    root = torch.randn(size, size)
    return root @ root.T


def basis(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size)).Q


MAKE: dict[str, Callable[[int, int], Operator]] = {
    "identity": lambda q, p: Identity(torch.tensor(0.7)),
    "diagonal": lambda q, p: Diagonal(torch.rand(q, p)),
    "kronecker": lambda q, p: Kronecker(psd(p), psd(q)),
    "kronecker_vector_A": lambda q, p: Kronecker(torch.rand(p), psd(q)),
    "kronecker_vector_G": lambda q, p: Kronecker(psd(p), torch.rand(q)),
    "kronecker_eigen": lambda q, p: KroneckerEigen(basis(p), basis(q), torch.rand(q, p)),
    "kronecker_eigen_identity_A": lambda q, p: KroneckerEigen(
        torch.empty(0), basis(q), torch.rand(q, p)
    ),
}


def full(factor: Tensor) -> Tensor:
    return factor.diag() if factor.ndim == 1 else factor


def explicit(operator: Operator, q: int, p: int) -> Tensor:
    """The dense matrix over the row-major vec(Δ), written down anew."""
    if isinstance(operator, Identity):
        return operator.scale * torch.eye(q * p)
    if isinstance(operator, Diagonal):
        return operator.diagonal.reshape(-1).diag()
    if isinstance(operator, Kronecker):
        return torch.kron(full(operator.G), full(operator.A))
    assert isinstance(operator, KroneckerEigen)
    U_A = torch.eye(p) if operator.U_A.ndim == 1 else operator.U_A
    U = torch.kron(operator.U_G.contiguous(), U_A.contiguous())
    return U @ operator.second_moments.reshape(-1).diag() @ U.T


@settings(max_examples=10, deadline=None)
@given(q=st.integers(1, 4), p=st.integers(1, 4), seed=st.integers(0, 2**16))
@pytest.mark.parametrize("name", MAKE)
def test_apply_is_the_explicit_matrix(name: str, q: int, p: int, seed: int) -> None:
    torch.manual_seed(seed)
    operator, delta = MAKE[name](q, p), torch.randn(q, p)
    matrix = explicit(operator, q, p)
    torch.testing.assert_close(operator.matrix(q, p), matrix)
    torch.testing.assert_close(operator.apply(delta).reshape(-1), matrix @ delta.reshape(-1))
    quadratic = operator.quadratic(delta)
    torch.testing.assert_close(quadratic, delta.reshape(-1) @ matrix @ delta.reshape(-1))
    assert quadratic >= 0
    torch.testing.assert_close(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-10 * matrix.trace()
    assert operator.mismatch((q, p)) == []


@pytest.mark.parametrize("name", MAKE)
def test_damping(name: str) -> None:
    q, p, epsilon = 3, 4, 0.3
    operator = MAKE[name](q, p)
    before = {k: v.clone() for k, v in operator.state().items()}
    matrix = explicit(operator, q, p)
    if isinstance(operator, Kronecker):
        A, G = full(operator.A), full(operator.G)
        A = A + epsilon * A.trace() / p * torch.eye(p)
        G = G + epsilon * G.trace() / q * torch.eye(q)
        expected = torch.kron(G, A)
    else:
        expected = matrix + epsilon * matrix.diagonal().mean() * torch.eye(q * p)
    damped = operator.damped(epsilon)
    assert type(damped) is type(operator)
    torch.testing.assert_close(damped.matrix(q, p), expected)
    torch.testing.assert_close(operator.damped(0.0).matrix(q, p), matrix)
    for key, tensor in operator.state().items():
        assert torch.equal(tensor, before[key]), "the stored state has changed"
    assert {k: v.shape for k, v in damped.state().items()} == {
        k: v.shape for k, v in before.items()
    }


@pytest.mark.parametrize("name", MAKE)
def test_state_and_dtype_round_trip(name: str) -> None:
    operator = MAKE[name](3, 4)
    again = OPERATORS[operator.kind].from_state(operator.state())
    assert type(again) is type(operator)
    assert torch.equal(again.matrix(3, 4), operator.matrix(3, 4))
    half = operator.to("cpu", torch.float32)
    assert {t.dtype for t in half.state().values()} == {torch.float32}
    assert half.matrix(3, 4).dtype == torch.float32
    torch.testing.assert_close(
        half.matrix(3, 4).double(), operator.matrix(3, 4), rtol=1e-4, atol=1e-4
    )
    same = operator.to()
    assert {t.dtype for t in same.state().values()} == {torch.float64}


def test_default_identity_is_one() -> None:
    delta = torch.randn(2, 3)
    assert torch.equal(Identity().apply(delta), delta)


def asymmetric(size: int) -> Tensor:
    factor = psd(size)
    factor[0, 1] += 0.01
    return factor


def indefinite(size: int) -> Tensor:
    U = basis(size)
    return U @ torch.tensor([-0.01, *[1.0] * (size - 1)]).diag() @ U.T


NAN = torch.tensor(float("nan"))
WRONG: dict[str, tuple[Callable[[], Operator], str]] = {
    "scale_shape": (lambda: Identity(torch.ones(1)), "scale has shape"),
    "scale_negative": (lambda: Identity(torch.tensor(-1.0)), "scale has a negative"),
    "diagonal_shape": (lambda: Diagonal(torch.rand(4, 3)), "diagonal has shape"),
    "diagonal_negative": (lambda: Diagonal(torch.rand(3, 4) - 2), "diagonal has a negative"),
    "diagonal_nan": (lambda: Diagonal(NAN.expand(3, 4)), "diagonal has a negative.*nan"),
    "A_shape": (lambda: Kronecker(psd(3), psd(3)), "A has shape"),
    "A_vector_shape": (lambda: Kronecker(torch.rand(3), psd(3)), "A has shape"),
    "A_vector_negative": (lambda: Kronecker(torch.rand(4) - 2, psd(3)), "A has a negative"),
    "A_asymmetric": (lambda: Kronecker(asymmetric(4), psd(3)), "A is not symmetric"),
    "G_shape": (lambda: Kronecker(psd(4), psd(4)), "G has shape"),
    "G_indefinite": (lambda: Kronecker(psd(4), indefinite(3)), "G is indefinite"),
    "G_negative": (lambda: Kronecker(psd(4), -psd(3)), "G is indefinite"),
    "G_nan": (lambda: Kronecker(psd(4), NAN.expand(3, 3)), "G has entries that are not finite"),
    "s_shape": (
        lambda: KroneckerEigen(basis(4), basis(3), torch.rand(4, 3)),
        "second_moments has shape",
    ),
    "s_negative": (
        lambda: KroneckerEigen(basis(4), basis(3), -torch.rand(3, 4)),
        "second_moments has a negative",
    ),
    "U_A_scaled": (
        lambda: KroneckerEigen(1.01 * basis(4), basis(3), torch.rand(3, 4)),
        "U_A is not orthonormal",
    ),
    "U_G_skewed": (
        lambda: KroneckerEigen(torch.empty(0), torch.rand(3, 3), torch.rand(3, 4)),
        "U_G is not orthonormal",
    ),
    "U_G_shape": (
        lambda: KroneckerEigen(torch.empty(0), basis(4), torch.rand(3, 4)),
        "U_G has shape",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_mismatch_names_what_is_wrong(name: str) -> None:
    make, message = WRONG[name]
    (found,) = make().mismatch((3, 4))
    with pytest.raises(ValueError, match=message):
        raise ValueError(found)


def test_mismatch_names_both_factors() -> None:
    assert len(Kronecker(psd(2), psd(2)).mismatch((3, 4))) == 2
    assert len(KroneckerEigen(basis(2), basis(2), torch.rand(2, 2)).mismatch((3, 4))) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_real_float32_estimates_are_accepted(kind: str) -> None:
    """Factors of few examples are rank-deficient: rounding makes eigenvalues of −1e-9."""
    torch.set_default_dtype(torch.float32)
    curvature = estimate(bert(), choices(2), pad_choices(), curvature=kind)
    for block in curvature.blocks:
        assert block.operator.mismatch(block.shape) == []
    if kind == "kronecker":
        state = next(b for b in curvature.blocks if "query" in b.name).operator.state()
        assert torch.linalg.matrix_rank(state["G"]) < len(state["G"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_factors_are_checked_too(dtype: torch.dtype) -> None:
    assert Kronecker(torch.eye(4), torch.eye(3)).to(dtype=dtype).mismatch((3, 4)) == []
    wrong = Kronecker(torch.eye(4), -torch.eye(3)).to(dtype=dtype)
    assert wrong.mismatch((3, 4)) == ["G is indefinite"]
