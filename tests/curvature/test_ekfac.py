"""EKFAC keeps the eigenbasis of the factors, and the exact diagonal in it."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.curvatures import (
    KINDS,
    LABELS,
    SHARINGS,
    assert_equal_matrices,
    dense,
    estimate,
    images,
    operators,
    oracle,
)
from tiny.layers import FACTORED, Logits, Mlp, Probe, examples, vectors
from torch import Tensor, nn

from hf_kfc.curvature import KroneckerEigen


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(sorted(FACTORED)),
    labels=st.sampled_from(LABELS),
    sharing=st.sampled_from(SHARINGS),
    count=st.integers(1, 6),
    seed=st.integers(0, 2**16),
)
def test_ekfac_is_never_farther_from_the_exact_block(
    kind: str, labels: str, sharing: str, count: int, seed: int
) -> None:
    """KFC is diagonal in the same eigenbasis, and EKFAC has the best diagonal there."""
    torch.manual_seed(seed)
    model = Probe(FACTORED[kind].build())
    data = examples([FACTORED[kind].many() for _ in range(count)])
    kfc = estimate(model, data, labels=labels, sharing=sharing)
    ekfac = estimate(model, data, labels=labels, sharing=sharing, curvature="kronecker_eigen")
    exact = oracle(model, data, kfc, labels)["layer"]
    distances = [float((dense(c)["layer"] - exact).norm()) for c in (ekfac, kfc)]
    assert distances[0] <= distances[1] + 1e-10 * float(exact.norm())


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("kind", FACTORED)
def test_ekfac_diagonal_is_that_of_the_rotated_block(kind: str, labels: str) -> None:
    """s = diag(Uᵀ F U) with F the exact block and U the eigenbasis of the factors."""
    model = Probe(FACTORED[kind].build())
    data = examples([FACTORED[kind].many() for _ in range(4)])
    curvature = estimate(model, data, labels=labels, curvature="kronecker_eigen")
    operator = operators(curvature)["layer"]
    assert isinstance(operator, KroneckerEigen)
    exact = oracle(model, data, curvature, labels)["layer"]
    _, p = curvature.blocks[0].shape
    U_A = torch.eye(p) if operator.U_A.ndim == 1 else operator.U_A
    U = torch.kron(operator.U_G, U_A)
    expected = (U.T @ exact @ U).diagonal().reshape(operator.second_moments.shape)
    assert_equal_matrices({"": operator.second_moments}, {"": expected})


@pytest.mark.parametrize("curvature", KINDS)
def test_layer_norm_is_always_diagonal(curvature: str) -> None:
    """Also when it is all there is to estimate: EKFAC then needs no second pass."""
    model, data = Logits(lambda m, x: m.norm(x)[:, :3], norm=nn.LayerNorm(4)), vectors(3)
    estimated = estimate(model, data, curvature=curvature)
    assert operators(estimated)["norm"].kind == "diagonal"
    exact = oracle(model, data, estimated)["norm"].diagonal()
    assert_equal_matrices({"": dense(estimated)["norm"].diagonal()}, {"": exact})


def test_an_eigenbasis_that_float32_does_not_find_is_found_in_float64(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_default_dtype(torch.float32)
    model, data = Mlp(), vectors(6)
    expected = images(estimate(model, data, curvature="kronecker_eigen"))
    eigh = torch.linalg.eigh

    def failing(matrix: Tensor) -> Any:
        if matrix.dtype == torch.float32:
            raise torch.linalg.LinAlgError("the algorithm failed to converge")
        return eigh(matrix)

    monkeypatch.setattr(torch.linalg, "eigh", failing)
    found = images(estimate(model, data, curvature="kronecker_eigen"))
    assert_equal_matrices(found, expected, rtol=1e-4)
