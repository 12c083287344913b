"""Compressed curvatures against what they were made of, as dense matrices in float64."""

import pytest
import torch
from torch import Tensor

from hf_kfc.curvature import (
    Compressor,
    Diagonal,
    Identity,
    Kronecker,
    KroneckerEigen,
    KroneckerSum,
    LowRankKronecker,
    Operator,
)
from hf_kfc.errors import CurvatureError

from .test_nearest_sum import moment

Q, P = 6, 9
BFLOAT16 = torch.bfloat16


def kronecker() -> Kronecker:
    return Kronecker(moment(P, 20), moment(Q, 12))


def relative(found: Operator, expected: Operator) -> float:
    dense = expected.matrix(Q, P)
    wide = found.to(dtype=torch.float64)
    return float((wide.matrix(Q, P) - dense).norm() / dense.norm())


def largest_eigenpairs(factor: Tensor, rank: int) -> Tensor:
    """The best of rank k, plus the diagonal of the rest, written down anew."""
    values, vectors = torch.linalg.eigh(factor)
    low = vectors[:, -rank:] @ values[-rank:].diag() @ vectors[:, -rank:].T
    return low + (factor - low).diagonal().diag()


@pytest.mark.parametrize("rank", [1, 3])
def test_low_rank_is_the_largest_eigenpairs_and_the_diagonal(rank: int) -> None:
    operator = kronecker()
    compressed = Compressor(rank)(operator, (Q, P))
    assert isinstance(compressed.operator, LowRankKronecker)
    assert compressed.operator.problems((Q, P)) == []
    dense = compressed.operator.kronecker_terms()[0]
    torch.testing.assert_close(dense.A, largest_eigenpairs(operator.A, rank))
    torch.testing.assert_close(dense.G, largest_eigenpairs(operator.G, rank))
    torch.testing.assert_close(dense.A.diagonal(), operator.A.diagonal())
    assert compressed.error == pytest.approx(relative(compressed.operator, operator), abs=1e-7)
    assert compressed.error > 0.01


def test_damping_is_that_of_the_whole_factors() -> None:
    """The trace is kept, and damping depends on nothing else."""
    operator = kronecker()
    small = Compressor(2)(operator, (Q, P)).operator
    added = [
        o.damped(0.3).kronecker_terms()[0].A - o.kronecker_terms()[0].A for o in (operator, small)
    ]
    torch.testing.assert_close(added[0], added[1])


def test_a_factor_smaller_than_the_rank_is_exact() -> None:
    operator = Kronecker(moment(P, 20), moment(2, 5))
    compressed = Compressor(3)(operator, (2, P))
    assert isinstance(compressed.operator, LowRankKronecker)
    torch.testing.assert_close(compressed.operator.kronecker_terms()[0].G, operator.G)


@pytest.mark.parametrize("rank", [P, P - 1, 100])
def test_what_would_not_get_smaller_is_kept(rank: int) -> None:
    operator = kronecker()
    compressed = Compressor(rank)(operator, (Q, P))
    assert compressed.operator is operator
    assert compressed.error == 0


def test_embeddings_keep_their_diagonal() -> None:
    operator = Kronecker(torch.rand(P), moment(Q, 12))
    small = Compressor(2)(operator, (Q, P)).operator
    assert isinstance(small, LowRankKronecker)
    assert small.A_U.shape == (P, 0)
    assert torch.equal(small.A_d, operator.A)
    torch.testing.assert_close(small.kronecker_terms()[0].G, largest_eigenpairs(operator.G, 2))


@pytest.mark.parametrize("rank", [None, 2])
def test_shared_factors_stay_shared(rank: int | None) -> None:
    A = moment(P, 20)
    compressor = Compressor(rank, BFLOAT16)
    query, key = (
        compressor(Kronecker(A, G), (Q, P)).operator for G in (moment(Q, 12), moment(Q, 12))
    )
    for name in query.input_names:
        assert query.state()[name] is key.state()[name]
    outputs = set(query.tensor_names) - set(query.input_names)
    assert all(query.state()[name] is not key.state()[name] for name in outputs)


def operators() -> dict[str, Operator]:
    torch.manual_seed(0)
    bases = [torch.linalg.qr(torch.randn(n, n)).Q for n in (P, Q)]
    return {
        "kronecker": kronecker(),
        "deficient": Kronecker(moment(P, 3), moment(Q, 2)),
        "embedding": Kronecker(torch.rand(P), moment(Q, 12)),
        "sum": KroneckerSum(
            torch.stack([moment(P, 3), moment(P, 20)]), torch.stack([moment(Q), moment(Q)])
        ),
        "sum_of_embeddings": KroneckerSum(torch.rand(2, P), torch.stack([moment(Q), moment(Q)])),
        "low_rank": Compressor(2)(kronecker(), (Q, P)).operator,
        "diagonal": Diagonal(torch.rand(Q, P)),
        "identity": Identity(torch.tensor(0.7)),
        "eigen": KroneckerEigen(*bases, torch.rand(Q, P)),
        "eigen_of_embedding": KroneckerEigen(torch.empty(0), bases[1], torch.rand(Q, P)),
    }


@pytest.mark.parametrize("name", operators())
def test_half_precision(name: str) -> None:
    operator = operators()[name]
    compressed = Compressor(dtype=BFLOAT16)(operator, (Q, P))
    found = compressed.operator
    assert type(found) is type(operator)
    assert {tensor.dtype for tensor in found.state().values()} == {BFLOAT16}
    assert found.problems((Q, P)) == []
    assert compressed.error == pytest.approx(relative(found, operator), abs=1e-7)
    assert 0 < compressed.error < 0.02
    # as it is used, in float32, it rewards no move beyond rounding
    matrix = found.to(dtype=torch.float64).matrix(Q, P)
    torch.testing.assert_close(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix)[0] >= -2e-6 * matrix.trace()


@pytest.mark.parametrize("name", ["sum", "sum_of_embeddings"])
def test_every_product_of_a_sum_is_of_low_rank(name: str) -> None:
    operator = operators()[name]
    compressed = Compressor(2)(operator, (Q, P))
    assert compressed.operator.kind == "low_rank_kronecker_sum"
    terms = [Compressor(2)(term, (Q, P)).operator for term in operator.kronecker_terms()]
    expected = torch.stack([term.matrix(Q, P) for term in terms]).sum(0)
    torch.testing.assert_close(compressed.operator.matrix(Q, P), expected)
    assert compressed.operator.trace((Q, P)) == pytest.approx(float(operator.trace((Q, P))))
    assert compressed.error == pytest.approx(relative(compressed.operator, operator), abs=1e-7)
    assert compressed.operator.stands_by_input == (name == "sum_of_embeddings")


def test_rounding_raises_the_diagonal_of_what_it_makes_indefinite() -> None:
    rows = torch.randn(30, 64) + 5 * torch.randn(64)
    operator = Kronecker((rows.T @ rows).float(), torch.eye(2))
    plain = operator.A.to(BFLOAT16).double()
    assert torch.linalg.eigvalsh(plain)[0] < -1e-5 * plain.trace()
    rounded = Compressor(dtype=BFLOAT16)(operator, (2, 64)).operator.state()["A"].double()
    assert torch.linalg.eigvalsh(rounded)[0] >= -1e-9 * rounded.trace()
    off = ~torch.eye(64, dtype=torch.bool)
    assert torch.equal(rounded[off], plain[off])


def test_asymmetry_of_rounding_is_not_rounded_up() -> None:
    A = moment(P, 20).float()
    half_way = torch.tensor(0.501953125, dtype=torch.float32)  # between two numbers of bfloat16
    A[0, 1], A[1, 0] = torch.nextafter(half_way, 2 * half_way), half_way
    assert not torch.equal(A.bfloat16(), A.bfloat16().T)
    small = Compressor(dtype=BFLOAT16)(Kronecker(A, torch.eye(2)), (2, P)).operator.state()["A"]
    assert torch.equal(small, small.T)


def test_a_diagonal_makes_up_for_the_rounding_of_low_rank() -> None:
    A = moment(P, 20)
    small = Compressor(4, BFLOAT16)(Kronecker(A, moment(Q, 9)), (Q, P)).operator
    assert isinstance(small, LowRankKronecker)
    assert small.A_U.dtype == BFLOAT16
    torch.testing.assert_close(
        small.kronecker_terms()[0].A.diagonal().double(), A.diagonal(), rtol=4e-3, atol=0
    )


def test_float32_gives_what_is_stored_and_no_error_of_it_back() -> None:
    operator = kronecker().to(dtype=torch.float32)
    half = Compressor(dtype=BFLOAT16)(operator, (Q, P)).operator
    wide = Compressor(dtype=torch.float32)(half, (Q, P))
    assert wide.error == 0
    assert {tensor.dtype for tensor in wide.operator.state().values()} == {torch.float32}


def test_a_curvature_of_nothing_has_no_error() -> None:
    nothing = Kronecker(torch.zeros(P, P), torch.zeros(Q, Q))
    for compressor in (Compressor(2), Compressor(dtype=BFLOAT16)):
        compressed = compressor(nothing, (Q, P))
        assert compressed.error == 0
        assert compressed.operator.problems((Q, P)) == []


@pytest.mark.parametrize("name", ["low_rank", "eigen"])
def test_what_has_no_factors_of_its_own_is_refused(name: str) -> None:
    operator = operators()[name]
    with pytest.raises(CurvatureError, match=f"a {operator.kind} curvature holds no Kron"):
        Compressor(2)(operator, (Q, P))


@pytest.mark.parametrize("name", ["diagonal", "identity"])
def test_what_has_no_factors_at_all_is_kept(name: str) -> None:
    operator = operators()[name]
    assert Compressor(2)(operator, (Q, P)).operator is operator


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(CurvatureError, match="rank 0 keeps no eigenpair"):
        Compressor(0)
    with pytest.raises(CurvatureError, match=r"not stored in torch.float16; give torch\.bfloat16"):
        Compressor(dtype=torch.float16)
