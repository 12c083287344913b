"""Groups and experts: each part of a layer has the curvature that it would have as a layer."""

import pytest
import torch
from tiny.curvatures import assert_equal_matrices, dense, estimate, oracle
from tiny.layers import Logits, Probe, examples, vectors
from torch import Tensor, nn

from hf_kfc.curvature import (
    Compressor,
    Diagonal,
    KroneckerStack,
    KroneckerSum,
    LowRankKroneckerStack,
    Operator,
    merge,
    relative_difference,
)
from hf_kfc.errors import CurvatureError

N, Q, P = 3, 6, 4
SHARINGS = ("expand", "reduce", "average")


def moment(size: int) -> Tensor:
    root = torch.randn(size, size + 1)
    return root @ root.T


def stack(terms: int = 1) -> KroneckerStack:
    A, G = (
        torch.stack([torch.stack([moment(size) for _ in range(terms)]) for _ in range(N)])
        for size in (P, Q // N)
    )
    return KroneckerStack(A, G)


def matrix(operator: Operator) -> Tensor:
    return operator.matrix(Q, P)


@pytest.mark.parametrize("terms", [1, 2])
def test_algebra_is_that_of_the_matrix(terms: int) -> None:
    one, two, diagonal = stack(terms), stack(), Diagonal(torch.rand(Q, P))
    F = matrix(one)
    torch.testing.assert_close(one.trace((Q, P)), F.trace())
    for other in (two, diagonal, Compressor(rank=1)(two, (Q, P)).operator):
        expected = (F * matrix(other)).sum()
        torch.testing.assert_close(one.inner(other, (Q, P)), expected)
        torch.testing.assert_close(other.inner(one, (Q, P)), expected)
    spectrum = one.spectrum((Q, P))
    assert spectrum is not None
    torch.testing.assert_close(spectrum.sort().values, torch.linalg.eigvalsh(F))
    torch.testing.assert_close(matrix(one + two), F + matrix(two))
    torch.testing.assert_close(matrix(one.scaled(0.3)), 0.3 * F)
    b = torch.randn(Q, P)
    solution = one.solve(b)
    torch.testing.assert_close(F @ solution.x.flatten(), b.flatten(), rtol=1e-5, atol=1e-6)
    assert solution.residual < 1e-6
    summed = sum((A * G.trace() for part in one.parts for A, G in zip(part.A, part.G, strict=True)))
    torch.testing.assert_close(one.input_moment(), summed)


def test_it_costs_what_its_parts_cost() -> None:
    assert stack().cost((Q, P)) == N * KroneckerSum(stack().A[0], stack().G[0]).cost((Q // N, P))


def test_compression_keeps_the_diagonal_and_tells_its_error() -> None:
    whole = stack()
    small = Compressor(rank=3)(whole, (Q, P))
    assert small.operator is whole  # it would not get smaller
    small = Compressor(rank=1)(whole, (Q, P))
    assert isinstance(small.operator, LowRankKroneckerStack)
    assert small.operator.problems((Q, P)) == []
    torch.testing.assert_close(matrix(small.operator).diagonal(), matrix(whole).diagonal())
    off = (matrix(small.operator) - matrix(whole)).norm() / matrix(whole).norm()
    assert small.error == pytest.approx(float(off), rel=1e-6)
    half = Compressor(dtype=torch.bfloat16)(whole, (Q, P)).operator
    assert {t.dtype for t in half.state().values()} == {torch.bfloat16}
    assert half.problems((Q, P)) == []


def test_merging_is_part_by_part() -> None:
    tasks = [stack() for _ in range(3)]
    weights = [0.5, 0.3, 0.2]
    exact = torch.stack([w * matrix(F) for w, F in zip(weights, tasks, strict=True)]).sum(0)
    kept = merge(tasks, weights, rank=3)
    torch.testing.assert_close(matrix(kept.operator), exact)
    assert kept.error == 0.0
    nearest = merge(tasks, weights, rank=2)
    assert nearest.operator.problems((Q, P)) == []
    off = (matrix(nearest.operator) - exact).norm() / exact.norm()
    assert nearest.error == pytest.approx(float(off), rel=1e-6)
    assert 0 < nearest.error < merge(tasks, weights, rank=1).error
    for number in range(N):  # as if it were a layer of its own
        alone = merge([F.parts[number] for F in tasks], weights, rank=2).operator
        torch.testing.assert_close(
            nearest.operator.parts[number].matrix(Q // N, P), alone.matrix(Q // N, P)
        )
    with pytest.raises(CurvatureError, match="have no sum"):
        merge([stack(), Diagonal(torch.rand(Q, P))], [0.5, 0.5], rank=2)


@pytest.mark.parametrize(
    ("A", "G", "message"),
    [
        ((3, 1, 4, 4), (2, 1, 2, 2), "A, G have no common number of parts"),
        ((4, 1, 4, 4), (4, 1, 2, 2), "have 4 parts, into which 6 rows do not fall"),
        ((0, 1, 4, 4), (0, 1, 2, 2), "have no common number of parts"),
        ((), (), "have no common number of parts"),
        ((3, 1, 4, 4), (3, 1, 3, 3), "G has shape .* in term 0 in part 0"),
        ((3, 0, 4, 4), (3, 0, 2, 2), "A, G have no common number of terms .* in part 0"),
    ],
)
def test_wrong_shapes_are_told(A: tuple[int, ...], G: tuple[int, ...], message: str) -> None:
    (found,) = KroneckerStack(torch.ones(A), torch.ones(G)).problems((Q, P))[:1]
    with pytest.raises(ValueError, match=message):
        raise ValueError(found)


def test_an_indefinite_part_is_told() -> None:
    wrong = stack()
    wrong.G[1] = -wrong.G[1]
    assert wrong.problems((Q, P)) == ["G is indefinite in term 0 in part 1"]


class Grouped(nn.Module):
    """What a convolution in groups is, written out with one convolution for each group."""

    def __init__(self, whole: nn.Conv1d) -> None:
        super().__init__()
        self.groups = nn.ModuleList()
        n = whole.groups
        for number in range(n):
            sizes = whole.in_channels // n, whole.out_channels // n
            own = nn.Conv1d(*sizes, whole.kernel_size[0], padding=whole.padding)
            rows = slice(number * sizes[1], (number + 1) * sizes[1])
            own.weight.data.copy_(whole.weight[rows])
            assert own.bias is not None and whole.bias is not None
            own.bias.data.copy_(whole.bias[rows])
            self.groups.append(own)

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(len(self.groups), dim=1)
        return torch.cat([own(part) for own, part in zip(self.groups, parts, strict=True)], dim=1)


def convolve(model: nn.Module, x: Tensor) -> Tensor:
    return model.layer(x).tanh().square().sum(-1)[:, :3]


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("labels", ["empirical", "exact"])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_groups_have_the_factors_of_separate_convolutions(
    groups: int, labels: str, sharing: str
) -> None:
    layer = nn.Conv1d(4, 8, 3, padding=1, groups=groups)
    apart = Logits(convolve, layer=Grouped(layer))
    data = vectors(5, 4, 6)
    arguments = {"labels": labels, "sharing": sharing}
    found = dense(estimate(Logits(convolve, layer=layer), data, **arguments))
    separate = dense(estimate(apart, data, **arguments))
    assert_equal_matrices(found, {"layer": torch.block_diag(*separate.values())})


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("bias", [True, False])
def test_groups_are_exact_at_one_position(bias: bool, sharing: str) -> None:
    """Same input in all examples and one position: every group's block of F is a product."""
    model = Probe(nn.Conv1d(4, 6, 2, groups=2, bias=bias))
    data = examples([torch.randn(4, 2)] * 3)
    curvature = estimate(model, data, sharing=sharing)
    assert [block.operator.kind for block in curvature.blocks] == ["kronecker_stack"]
    exact = oracle(model, data, curvature)["layer"]
    half = len(exact) // 2
    exact[:half, half:] = exact[half:, :half] = 0  # what groups have in common is left out
    assert_equal_matrices(dense(curvature), {"layer": exact})


@pytest.mark.parametrize("sharing", SHARINGS)
def test_groups_do_not_depend_on_the_batch_size(sharing: str) -> None:
    model = Logits(convolve, layer=nn.Conv1d(6, 6, 3, groups=6))
    data = vectors(7, 6, 5)
    whole = dense(estimate(model, data, sharing=sharing))
    for size in (1, 3):
        assert_equal_matrices(
            dense(estimate(model, data, sharing=sharing, curvature_batch_size=size)), whole
        )


@pytest.mark.parametrize(
    ("kind", "sharing"), [("kronecker_eigen", "expand"), ("kronecker", "centred")]
)
def test_other_kinds_have_the_diagonal_of_groups(kind: str, sharing: str) -> None:
    model = Logits(convolve, layer=nn.Conv1d(4, 6, 2, groups=2))
    data = vectors(4, 4, 5)
    (block,) = estimate(model, data, curvature=kind, sharing=sharing).blocks
    (diagonal,) = estimate(model, data, curvature="diagonal").blocks
    assert block.operator.kind == "diagonal"
    assert relative_difference(block.operator, diagonal.operator, block.shape) == 0.0
