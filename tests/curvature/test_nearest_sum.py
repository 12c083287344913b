"""Merged curvatures against their sums as dense matrices, in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hf_kfc.curvature import (
    Diagonal,
    Identity,
    Kronecker,
    KroneckerEigen,
    KroneckerSum,
    LowRankKronecker,
    Operator,
    merge,
    merge_sharing,
    nearest_sum,
)
from hf_kfc.errors import CurvatureError

Q, P = 3, 4


def moment(size: int, rows: int = 2) -> Tensor:
    """A second moment of inputs that are far from zero mean, of low rank if there are few rows."""
    drawn = torch.randn(rows, size) + torch.randn(size)
    return drawn.T @ drawn / rows


def products(count: int, q: int = Q, p: int = P) -> list[Kronecker]:
    return [Kronecker(moment(p), float(torch.rand(()) + 0.1) * moment(q, 5)) for _ in range(count)]


def total(operators: list[Operator], weights: list[float], q: int = Q, p: int = P) -> Tensor:
    matrices = [w * operator.matrix(q, p) for operator, w in zip(operators, weights, strict=True)]
    return torch.stack(matrices).sum(0)


def rearranged(matrix: Tensor, q: int = Q, p: int = P) -> Tensor:
    """R with vec(G) vec(A)ᵀ in place of G ⊗ A (Van Loan & Pitsianis 1993)."""
    return matrix.reshape(q, p, q, p).permute(0, 2, 1, 3).reshape(q * q, p * p)


def relative(found: Operator, expected: Tensor, q: int = Q, p: int = P) -> float:
    return float((found.matrix(q, p) - expected).norm() / expected.norm())


def draw_weights(count: int) -> list[float]:
    return [float(w) for w in torch.rand(count) + 0.2]


@settings(max_examples=25, deadline=None)
@given(count=st.integers(2, 7), rank=st.integers(1, 4), seed=st.integers(0, 2**16))
def test_the_error_is_that_of_the_dense_matrices_and_factors_are_definite(
    count: int, rank: int, seed: int
) -> None:
    torch.manual_seed(seed)
    operators, weights = products(count), draw_weights(count)
    merged = merge(operators, weights, rank)
    expected = total(operators, weights)
    assert len(merged.operator.kronecker_terms()) <= rank
    assert merged.error == pytest.approx(relative(merged.operator, expected), abs=1e-7)
    assert merged.operator.problems((Q, P)) == []
    for term in merged.operator.kronecker_terms():
        assert torch.linalg.eigvalsh(term.A)[0] > -1e-12 * term.A.trace()
        assert torch.linalg.eigvalsh(term.G)[0] > -1e-12 * term.G.trace()
    # no sum of so few products is nearer, whatever their signs
    values = torch.linalg.svdvals(rearranged(expected))
    assert merged.error >= float(values[rank:].norm() / values.norm()) - 1e-9


@settings(max_examples=25, deadline=None)
@given(count=st.integers(2, 7), seed=st.integers(0, 2**16))
def test_of_rank_one_it_is_the_best_of_all_kronecker_products(count: int, seed: int) -> None:
    torch.manual_seed(seed)
    operators, weights = products(count), draw_weights(count)
    merged = merge(operators, weights, rank=1)
    assert isinstance(merged.operator, Kronecker)
    R = rearranged(total(operators, weights))
    U, S, V = torch.linalg.svd(R, full_matrices=False)
    best = S[0] * torch.outer(U[:, 0], V[0])
    torch.testing.assert_close(
        rearranged(merged.operator.matrix(Q, P)), best, atol=1e-7 * float(S[0]), rtol=0
    )


@pytest.mark.parametrize("seed", range(8))
def test_the_search_finds_what_many_random_starts_find(seed: int) -> None:
    torch.manual_seed(seed)
    count, rank = 4 + seed % 4, 2 + seed % 3
    operators, weights = products(count), np.array(draw_weights(count))
    roots, norms = [], np.ones(count)
    for factors in ([o.A for o in operators], [o.G for o in operators]):
        gram = torch.tensor([[float((f * h).sum()) for h in factors] for f in factors]).numpy()
        sizes = np.sqrt(gram.diagonal())
        roots.append(nearest_sum._root(gram / np.outer(sizes, sizes)))
        norms = norms * sizes
    search = nearest_sum._Search(*roots, weights * norms)
    draw = np.random.default_rng(seed)
    best = min(
        search._error(*search.refined(*draw.random((2, rank, count)))) for _ in range(10)
    ) / np.linalg.norm(search.T)
    assert merge(operators, list(weights), rank).error <= 1.03 * best


def test_of_rank_one_where_the_largest_singular_value_is_a_double_one() -> None:
    """Disjoint factors: singular vectors may have any signs, the result has none."""
    one, other = torch.tensor([1.0, 0, 0, 0]).diag(), torch.tensor([0.0, 1, 0, 0]).diag()
    operators = [Kronecker(one, one), Kronecker(other, other)]
    merged = merge(operators, [1.0, 1.0], rank=1)
    assert merged.error == pytest.approx(0.5**0.5)
    assert merged.operator.problems((4, 4)) == []
    assert relative(merged.operator, total(operators, [1, 1], 4, 4), 4, 4) == merged.error


def test_more_rank_is_never_worse() -> None:
    operators, weights = products(8), draw_weights(8)
    errors = [merge(operators, weights, rank).error for rank in range(1, 9)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.05  # there was something to gain
    assert errors[-1] == 0


@pytest.mark.parametrize("rank", [3, 4, 100])
def test_up_to_the_rank_products_are_kept_as_they_are(rank: int) -> None:
    operators, weights = products(3), [0.5, 0.3, 0.2]
    merged = merge(operators, weights, rank)
    assert isinstance(merged.operator, KroneckerSum)
    assert merged.error == 0
    assert torch.equal(merged.operator.A, torch.stack([o.A for o in operators]))
    scaled = [w * o.G for o, w in zip(operators, weights, strict=True)]
    assert torch.equal(merged.operator.G, torch.stack(scaled))
    torch.testing.assert_close(merged.operator.matrix(Q, P), total(operators, weights))


def test_copies_are_one_product() -> None:
    (one,) = products(1)
    merged = merge([one] * 6, [1.0] * 6, rank=2)
    assert merged.error < 1e-7
    torch.testing.assert_close(merged.operator.matrix(Q, P), 6 * one.matrix(Q, P))


def test_clusters_are_found() -> None:
    """Six tasks of two kinds: as two products they lose nothing."""
    kinds = products(2)
    operators = [Kronecker(k.A * (1 + i), k.G) for i in range(3) for k in kinds]
    assert merge(operators, [1.0] * 6, rank=2).error < 1e-7
    assert merge(operators, [1.0] * 6, rank=1).error > 0.01


def test_tasks_without_curvature_take_no_product() -> None:
    operators = [*products(2), Kronecker(moment(P), torch.zeros(Q, Q))]
    merged = merge(operators, [1.0, 2.0, 3.0], rank=2)
    assert merged.error < 1e-7
    torch.testing.assert_close(merged.operator.matrix(Q, P), total(operators, [1, 2, 3]))
    nothing = merge([operators[-1]] * 3, [1.0] * 3, rank=2)
    assert nothing.error == 0
    assert torch.equal(nothing.operator.matrix(Q, P), torch.zeros(Q * P, Q * P))


def test_factors_of_any_scale() -> None:
    """Gradients are tiny, and the norms of A and G can be far apart."""
    operators = [Kronecker(1e6 * o.A, 1e-14 * o.G) for o in products(5)]
    merged = merge(operators, [1.0] * 5, rank=2)
    assert merged.error == pytest.approx(relative(merged.operator, total(operators, [1] * 5)))
    single = [o.to(dtype=torch.float32) for o in operators]
    half = merge(single, [1.0] * 5, rank=2)
    assert {t.dtype for t in half.operator.state().values()} == {torch.float32}
    assert half.operator.problems((Q, P)) == []
    assert half.error == pytest.approx(merged.error, rel=1e-3)


def test_embeddings_have_diagonal_inputs() -> None:
    operators = [Kronecker(torch.rand(P), moment(Q)) for _ in range(5)]
    weights = draw_weights(5)
    merged = merge(operators, weights, rank=2)
    assert isinstance(merged.operator, KroneckerSum)
    assert merged.operator.A.shape == (2, P)
    expected = total(operators, weights)
    assert merged.error == pytest.approx(relative(merged.operator, expected), abs=1e-7)


def test_sums_and_low_rank_products_are_merged_by_their_terms() -> None:
    small = LowRankKronecker(torch.randn(P, 1), torch.rand(P), torch.randn(Q, 2), torch.rand(Q))
    stacked = merge(products(3), [1.0] * 3, rank=3).operator
    operators = [small, stacked, *products(1)]
    weights = [0.2, 0.5, 0.3]
    exact = merge(operators, weights, rank=5)
    assert exact.error == 0
    torch.testing.assert_close(exact.operator.matrix(Q, P), total(operators, weights))
    near = merge(operators, weights, rank=2)
    expected = total(operators, weights)
    assert near.error == pytest.approx(relative(near.operator, expected), abs=1e-7)


def test_damping_and_merging_commute() -> None:
    operators, weights = products(3), draw_weights(3)
    merged = merge(operators, weights, rank=3).operator.damped(0.2).matrix(Q, P)
    torch.testing.assert_close(merged, total([o.damped(0.2) for o in operators], weights))


def test_layers_that_share_inputs_still_do() -> None:
    """Query, key and value: one A of each task, and one of each product of the result."""
    inputs = [moment(P) for _ in range(5)]
    sizes = (Q, Q, 2)
    layers = [[Kronecker(A, 10.0**n * moment(q)) for A in inputs] for n, q in enumerate(sizes)]
    weights = draw_weights(5)
    for rank in (1, 2, 5):
        merged = merge_sharing(layers, weights, rank)
        assert len({id(m.operator.A) for m in merged}) == 1
        for layer, found, q in zip(layers, merged, sizes, strict=True):
            expected = total(layer, weights, q, P)
            measured = relative(found.operator, expected, q, P)
            assert found.error == pytest.approx(measured, abs=1e-7)
            alone = merge(layer, weights, rank).error
            assert found.error <= 2 * alone + 0.1  # sharing costs something, but not much


def test_gram_matrices_do_not_depend_on_how_rows_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    operators, weights = products(5), draw_weights(5)
    whole = merge(operators, weights, rank=2)
    monkeypatch.setattr(nearest_sum, "_CHUNK", 7)
    cut = merge(operators, weights, rank=2)
    assert cut.error == pytest.approx(whole.error)


def test_a_degenerate_step_ends_the_search_with_what_it_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("Maximum number of iterations reached.")

    operators, weights = products(6), draw_weights(6)
    searched = merge(operators, weights, rank=2).error
    monkeypatch.setattr("scipy.optimize.nnls", fail)
    merged = merge(operators, weights, rank=2)
    expected = total(operators, weights)
    assert merged.error == pytest.approx(relative(merged.operator, expected), abs=1e-7)
    assert merged.error >= searched


def test_diagonals_and_identities_are_summed() -> None:
    weights = draw_weights(3)
    diagonals = [Diagonal(torch.rand(Q, P)) for _ in weights]
    identities = [Identity(torch.rand(())) for _ in weights]
    for operators in (diagonals, identities):
        merged = merge(operators, weights, rank=1)
        assert type(merged.operator) is type(operators[0])
        assert merged.error == 0
        torch.testing.assert_close(merged.operator.matrix(Q, P), total(operators, weights))


def test_what_has_no_sum_is_refused() -> None:
    kronecker, diagonal = products(1)[0], Diagonal(torch.rand(Q, P))
    eigen = KroneckerEigen(torch.eye(P), torch.eye(Q), torch.rand(Q, P))
    for operators, kinds in (
        ([eigen, eigen], "kronecker_eigen"),
        ([kronecker, diagonal], "diagonal and kronecker"),
        ([Identity(), diagonal], "diagonal and identity"),
    ):
        with pytest.raises(CurvatureError, match=f"of kind {kinds} have no sum; merge"):
            merge(operators, [1.0, 1.0], rank=2)
    with pytest.raises(CurvatureError, match=r"factors G of shapes \[3, 3\] and \[4, 4\]"):
        merge([kronecker, Kronecker(moment(P), moment(4))], [1.0, 1.0], rank=1)
    with pytest.raises(CurvatureError, match="rank 0 is no number"):
        merge([kronecker, kronecker], [1.0, 1.0], rank=0)
