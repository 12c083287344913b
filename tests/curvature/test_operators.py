"""Operators are the symmetric positive semi-definite maps that their formulas say."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.curvatures import KINDS, estimate
from tiny.data import choices, pad_choices
from tiny.models import bert
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hf_kfc.curvature import (
    OPERATORS,
    Diagonal,
    Identity,
    Kronecker,
    KroneckerEigen,
    KroneckerStack,
    KroneckerSum,
    LowRankKronecker,
    LowRankKroneckerStack,
    LowRankKroneckerSum,
    Operator,
)
from hf_kfc.curvature.operators import Stack
from hf_kfc.errors import CurvatureError


def psd(size: int) -> Tensor:
    root = torch.randn(size, size)
    return root @ root.T


def basis(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size)).Q


def low_rank(p: int, k: int, q: int, m: int) -> LowRankKronecker:
    return LowRankKronecker(torch.randn(p, k), torch.rand(p), torch.randn(q, m), torch.rand(q))


def low_rank_sum(p: int, k: int, q: int, m: int) -> LowRankKroneckerSum:
    return LowRankKroneckerSum(
        torch.randn(2, p, k), torch.rand(2, p), torch.randn(2, q, m), torch.rand(2, q)
    )


def stack(make: Callable[[], Tensor]) -> Tensor:
    return torch.stack([make() for _ in range(3)])


def parts(q: int) -> int:
    """As many parts as rows can be cut into, and more than one if they can be cut."""
    return next((n for n in (2, 3) if q % n == 0), q)


def kronecker_stack(q: int, p: int, terms: int = 1) -> KroneckerStack:
    n = parts(q)
    A, G = (
        torch.stack([torch.stack([psd(size) for _ in range(terms)]) for _ in range(n)])
        for size in (p, q // n)
    )
    return KroneckerStack(A, G)


def low_rank_stack(q: int, p: int) -> LowRankKroneckerStack:
    return LowRankKroneckerStack.of([low_rank_sum(p, 1, q // parts(q), 1) for _ in range(parts(q))])


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
    "kronecker_sum": lambda q, p: KroneckerSum(stack(lambda: psd(p)), stack(lambda: psd(q))),
    "kronecker_sum_vector_A": lambda q, p: KroneckerSum(torch.rand(3, p), stack(lambda: psd(q))),
    "kronecker_sum_vector_G": lambda q, p: KroneckerSum(stack(lambda: psd(p)), torch.rand(3, q)),
    "low_rank_kronecker": lambda q, p: low_rank(p, 1, q, 1),
    "low_rank_kronecker_vector_A": lambda q, p: low_rank(p, 0, q, 1),
    "low_rank_kronecker_sum": lambda q, p: low_rank_sum(p, 1, q, 1),
    "low_rank_kronecker_sum_vector_A": lambda q, p: low_rank_sum(p, 0, q, 1),
    "low_rank_kronecker_of_full_rank": lambda q, p: low_rank(p, p, q, q),
    "kronecker_stack": kronecker_stack,
    "kronecker_stack_of_sums": lambda q, p: kronecker_stack(q, p, 2),
    "low_rank_kronecker_stack": low_rank_stack,
}


PRODUCTS = Kronecker | KroneckerSum | LowRankKronecker | LowRankKroneckerSum


def full(factor: Tensor) -> Tensor:
    return factor.diag() if factor.ndim == 1 else factor


def products(operator: Operator) -> list[tuple[Tensor, Tensor]]:
    """A and G of every product, as matrices."""
    if isinstance(operator, LowRankKronecker):
        A = operator.A_U @ operator.A_U.T + operator.A_d.diag()
        return [(A, operator.G_U @ operator.G_U.T + operator.G_d.diag())]
    if isinstance(operator, LowRankKroneckerSum):
        A = operator.A_U @ operator.A_U.mT + torch.diag_embed(operator.A_d)
        G = operator.G_U @ operator.G_U.mT + torch.diag_embed(operator.G_d)
        return list(zip(A, G, strict=True))
    assert isinstance(operator, Kronecker | KroneckerSum)
    if isinstance(operator, Kronecker):
        return [(full(operator.A), full(operator.G))]
    return [(full(A), full(G)) for A, G in zip(operator.A, operator.G, strict=True)]


def explicit(operator: Operator, q: int, p: int) -> Tensor:
    """The dense matrix over the row-major vec(Δ), written down anew."""
    if isinstance(operator, Identity):
        return operator.scale * torch.eye(q * p)
    if isinstance(operator, Diagonal):
        return operator.diagonal.reshape(-1).diag()
    if isinstance(operator, Stack):
        return torch.block_diag(*(explicit(part, q // parts(q), p) for part in operator.parts))
    if isinstance(operator, PRODUCTS):
        return torch.stack([torch.kron(G, A) for A, G in products(operator)]).sum(0)
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
    assert operator.problems((q, p)) == []


def damped_products(operator: Operator, q: int, p: int, epsilon: float) -> Tensor:
    total = torch.zeros(q * p, q * p)
    for A, G in products(operator):
        damped_A = A + epsilon * A.trace() / p * torch.eye(p)
        total += torch.kron(G + epsilon * G.trace() / q * torch.eye(q), damped_A)
    return total


@pytest.mark.parametrize("name", MAKE)
def test_damping(name: str) -> None:
    q, p, epsilon = 3, 4, 0.3
    operator = MAKE[name](q, p)
    before = {k: v.clone() for k, v in operator.state().items()}
    matrix = explicit(operator, q, p)
    if isinstance(operator, Stack):
        of_parts = (damped_products(part, q // parts(q), p, epsilon) for part in operator.parts)
        expected = torch.block_diag(*of_parts)
    elif isinstance(operator, PRODUCTS):
        expected = damped_products(operator, q, p, epsilon)
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


@pytest.mark.parametrize("name", ["kronecker", "kronecker_sum", "low_rank_kronecker"])
def test_terms_add_up(name: str) -> None:
    operator = MAKE[name](3, 4)
    terms = operator.kronecker_terms()
    assert all(isinstance(term, Kronecker) for term in terms)
    total = torch.stack([term.matrix(3, 4) for term in terms]).sum(0)
    torch.testing.assert_close(total, operator.matrix(3, 4))


@pytest.mark.parametrize("name", MAKE)
def test_of_inputs_and_spread_undo_each_other(name: str) -> None:
    q, p, inputs = 3, 5, torch.tensor([0, 3, 4])
    operator = MAKE[name](q, p)
    if not (name == "diagonal" or name.endswith(("vector_A", "identity_A"))):
        for change in (lambda: operator.of_inputs(inputs), lambda: operator.spread(inputs, 7)):
            with pytest.raises(CurvatureError, match=f"a {operator.kind} curvature .* part by inp"):
                change()
        return
    part = operator.of_inputs(inputs)
    assert part.problems((q, 3)) == []
    delta = torch.zeros(q, p)
    delta[:, inputs] = torch.randn(q, 3)
    torch.testing.assert_close(part.apply(delta[:, inputs]), operator.apply(delta)[:, inputs])
    again = part.spread(inputs, p)
    assert again.problems((q, p)) == []
    torch.testing.assert_close(again.apply(delta), operator.apply(delta))
    delta[:, inputs] = 0
    delta[:, 1] = 1
    assert torch.equal(again.apply(delta), torch.zeros(q, p))


def test_damping_commutes_with_sums() -> None:
    """The same F written as sums of other products is damped alike."""
    A, B, G = psd(4), psd(4), psd(3)
    one = Kronecker(A + B, G).damped(0.3).matrix(3, 4)
    two = KroneckerSum(torch.stack([A, B]), torch.stack([G, G])).damped(0.3).matrix(3, 4)
    torch.testing.assert_close(one, two)


def test_damping_of_low_rank_factors_costs_two_vectors() -> None:
    operator = low_rank(4, 2, 3, 1)
    damped = operator.damped(0.3)
    assert damped.A_U is operator.A_U
    assert damped.G_U is operator.G_U


@pytest.mark.parametrize(("p", "k", "q"), [(64, 4, 32), (64, 40, 32), (64, 64, 512), (512, 300, 8)])
def test_low_rank_factors_are_multiplied_as_is_cheapest(p: int, k: int, q: int) -> None:
    operator, delta = low_rank(p, k, q, 0), torch.randn(q, p)
    with FlopCounterMode(display=False) as counter:
        product = operator.apply(delta)
    assert counter.get_total_flops() == 2 * min(2 * q * p * k, p * p * k + q * p * p)
    torch.testing.assert_close(product, operator.kronecker_terms()[0].apply(delta))


def test_a_sum_costs_what_its_terms_cost() -> None:
    q, p = 8, 16
    operator = MAKE["kronecker_sum"](q, p)
    with FlopCounterMode(display=False) as counter:
        operator.apply(torch.randn(q, p))
    assert counter.get_total_flops() == 3 * 2 * (q * q * p + q * p * p)


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
    "sum_A_shape": (
        lambda: KroneckerSum(torch.rand(3, 3), stack(lambda: psd(3))),
        r"A has shape \[3\], expected \[4\] in term 0",
    ),
    "sum_without_terms": (
        lambda: KroneckerSum(torch.rand(0, 4), stack(lambda: psd(3))),
        r"A, G have no common number of terms \(A \[0, 4\]",
    ),
    "sum_of_unlike_terms": (
        lambda: KroneckerSum(torch.rand(2, 4), stack(lambda: psd(3))),
        r"no common number of terms \(A \[2, 4\], G \[3, 3, 3\]\)",
    ),
    "sum_scalar": (
        lambda: KroneckerSum(torch.ones(()), stack(lambda: psd(3))),
        r"A, G have no common number of terms \(A \[\]",
    ),
    "sum_negative": (
        lambda: KroneckerSum(-torch.rand(1, 4), psd(3)[None]),
        r"A has a negative entry \(.*\) in term 0",
    ),
    "sum_indefinite": (
        lambda: KroneckerSum(torch.rand(2, 4), torch.stack([psd(3), indefinite(3)])),
        "G is indefinite in term 1",
    ),
    "sum_asymmetric": (
        lambda: KroneckerSum(torch.stack([asymmetric(4), psd(4)]), torch.rand(2, 3)),
        "A is not symmetric .* in term 0",
    ),
    "A_U_shape": (lambda: low_rank(4, 5, 3, 1), r"A_U has shape \[4, 5\], expected \[4, k\]"),
    "A_d_negative": (
        lambda: LowRankKronecker(
            torch.randn(4, 1), -torch.rand(4), torch.randn(3, 1), torch.rand(3)
        ),
        "A_d has a negative",
    ),
    "G_d_shape": (
        lambda: LowRankKronecker(
            torch.randn(4, 1), torch.rand(4), torch.randn(3, 1), torch.rand(4)
        ),
        "G_d has shape",
    ),
    "G_U_shape": (
        lambda: LowRankKronecker(torch.randn(4, 1), torch.rand(4), torch.randn(3), torch.rand(3)),
        "G_U has shape",
    ),
    "low_rank_sum_of_unlike_terms": (
        lambda: LowRankKroneckerSum(
            torch.randn(2, 4, 1), torch.rand(2, 4), torch.randn(2, 3, 1), torch.rand(3, 3)
        ),
        r"A_U, A_d, G_U, G_d have no common number of terms \(A_U \[2, 4, 1\]",
    ),
    "low_rank_sum_negative": (
        lambda: LowRankKroneckerSum(
            torch.randn(1, 4, 1), -torch.rand(1, 4), torch.randn(1, 3, 1), torch.rand(1, 3)
        ),
        "A_d has a negative entry .* in term 0",
    ),
    "U_G_shape": (
        lambda: KroneckerEigen(torch.empty(0), basis(4), torch.rand(3, 4)),
        "U_G has shape",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_mismatch_names_what_is_wrong(name: str) -> None:
    make, message = WRONG[name]
    (found,) = make().problems((3, 4))
    with pytest.raises(ValueError, match=message):
        raise ValueError(found)


def test_mismatch_names_both_factors() -> None:
    assert len(Kronecker(psd(2), psd(2)).problems((3, 4))) == 2
    assert len(KroneckerEigen(basis(2), basis(2), torch.rand(2, 2)).problems((3, 4))) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_real_float32_estimates_are_accepted(kind: str) -> None:
    """Factors of few examples are rank-deficient: rounding makes eigenvalues of −1e-9."""
    torch.set_default_dtype(torch.float32)
    curvature = estimate(bert(), choices(2), pad_choices(), curvature=kind)
    for block in curvature.blocks:
        assert block.operator.problems(block.shape) == []
    if kind == "kronecker":
        state = next(b for b in curvature.blocks if "query" in b.name).operator.state()
        assert torch.linalg.matrix_rank(state["G"]) < len(state["G"])


def test_sums_of_squares_are_looked_at_again_once_they_were_written_to() -> None:
    summed = Kronecker.of_sums(psd(4), psd(3))
    assert summed.problems((3, 4)) == []
    assert summed.problems((3, 5)) == ["A has shape [4, 4], expected [5, 5]"]
    summed.G.neg_()
    assert summed.problems((3, 4)) == ["G is indefinite"]
    other = Kronecker.of_sums(psd(4), psd(3))
    other.A = -other.A
    assert other.problems((3, 4)) == ["A is indefinite"]
    believed = Kronecker.of_sums(psd(4), -psd(3))  # or nothing would be saved
    assert believed.problems((3, 4)) == []
    with torch.inference_mode():  # whose tensors count no writes
        assert Kronecker(psd(4), psd(3)).problems((3, 4)) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_factors_are_checked_too(dtype: torch.dtype) -> None:
    assert Kronecker(torch.eye(4), torch.eye(3)).to(dtype=dtype).problems((3, 4)) == []
    wrong = Kronecker(torch.eye(4), -torch.eye(3)).to(dtype=dtype)
    assert wrong.problems((3, 4)) == ["G is indefinite"]


def test_rounding_to_bfloat16_is_allowed_and_no_more() -> None:
    rows = torch.randn(30, 64) + 5 * torch.randn(64)  # far from zero mean, as activations are
    A = (rows.T @ rows).float()
    assert torch.linalg.eigvalsh(A.bfloat16().float())[0] < -1e-5 * A.trace()
    rounded = Kronecker(A, torch.eye(3)).to(dtype=torch.bfloat16)
    assert rounded.problems((3, 64)) == []
    wrong = A - 0.01 * A.norm() * torch.eye(64)
    assert Kronecker(wrong, torch.eye(3)).to(dtype=torch.bfloat16).problems((3, 64)) == [
        "A is indefinite"
    ]
    eigen = KroneckerEigen(basis(64), basis(3), torch.rand(3, 64)).to(dtype=torch.bfloat16)
    assert eigen.problems((3, 64)) == []
    skewed = KroneckerEigen(1.02 * basis(64), basis(3), torch.rand(3, 64)).to(dtype=torch.bfloat16)
    (phrase,) = skewed.problems((3, 64))
    assert phrase.startswith("U_A is not orthonormal")


def test_low_rank_factors_are_densified_and_damped_in_float32() -> None:
    half = low_rank(4, 2, 3, 1).to(dtype=torch.bfloat16)
    damped = half.damped(1e-4).to(dtype=torch.float32).matrix(3, 4)
    torch.testing.assert_close(
        damped, half.to(dtype=torch.float32).damped(1e-4).matrix(3, 4), rtol=1e-6, atol=1e-6
    )
    dense = half.kronecker_terms()[0]
    assert dense.A.dtype == torch.float32
    torch.testing.assert_close(dense.matrix(3, 4), half.to(dtype=torch.float32).matrix(3, 4))
