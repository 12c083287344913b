"""A kind of curvature that the library has never heard of is one new class."""

from pathlib import Path
from typing import Self

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

from hf_kfc.commands.diff import compare_blocks
from hf_kfc.commands.inspect import summarise_layers
from hf_kfc.curvature import (
    OPERATORS,
    Block,
    Compressor,
    Curvature,
    Diagonal,
    Kronecker,
    KroneckerEigen,
    Layout,
    Operator,
    merge,
    register_operator,
    relative_difference,
)
from hf_kfc.errors import CurvatureError
from hf_kfc.priors import ConsolidationPrior, Provenance
from hf_kfc.training.penalty import ConsolidationPenalty

Q, P = 3, 4


class Spiked(Operator):
    """F = Σ_r u_r u_rᵀ + c·I with u_r of any direction in the space of Δ: no Kronecker product."""

    kind = "spiked"
    tensor_names = ("spikes", "floor")

    def __init__(self, spikes: Tensor, floor: Tensor) -> None:
        self.spikes = spikes  # [r, q, p]
        self.floor = floor  # []

    @override
    def apply(self, delta: Tensor) -> Tensor:
        shares = (self.spikes * delta).sum((1, 2))
        return (shares[:, None, None] * self.spikes).sum(0) + self.floor * delta

    @override
    def damped(self, epsilon: float) -> Self:
        mean = self.spikes.square().sum() / self.spikes[0].numel() + self.floor
        return type(self)(self.spikes, self.floor + epsilon * mean)

    @override
    def problems(self, shape: tuple[int, int]) -> list[str]:
        wrong = tuple(self.spikes.shape[1:]) != shape
        return [f"spikes has shape {list(self.spikes.shape)}"] if wrong else []

    @override
    def scaled(self, weight: float) -> Self:
        return type(self)(weight**0.5 * self.spikes, weight * self.floor)

    def __add__(self, other: Operator) -> Operator:
        if not isinstance(other, Spiked):
            return super().__add__(other)
        return Spiked(torch.cat([self.spikes, other.spikes]), self.floor + other.floor)


def make(seed: int = 0) -> Spiked:
    torch.manual_seed(seed)
    return Spiked(torch.randn(2, Q, P), torch.rand(()))


def others() -> list[Operator]:
    torch.manual_seed(3)
    U_A, U_G = (torch.linalg.qr(torch.randn(n, n)).Q for n in (P, Q))
    factors = [torch.randn(n, n) for n in (P, Q)]
    return [
        make(1),
        Diagonal(torch.rand(Q, P)),
        Kronecker(*(f @ f.T for f in factors)),
        KroneckerEigen(U_A, U_G, torch.rand(Q, P)),
        KroneckerEigen(torch.empty(0), U_G, torch.rand(Q, P)),
    ]


def prior(model: nn.Module, seed: int) -> ConsolidationPrior:
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    block = Block("head", Layout.OUT_IN, shapes, make(seed))
    anchor = {name: p.detach() + 1 for name, p in model.named_parameters()}
    return ConsolidationPrior(anchor, Curvature((block,), 10), Provenance("old", num_examples=10))


@pytest.fixture
def model() -> nn.Module:
    return nn.ModuleDict({"head": nn.Linear(P - 1, Q)})


@pytest.mark.parametrize("number", range(len(others())))
def test_its_inner_products_follow(number: int) -> None:
    one, other = make(), others()[number]
    dense, other_dense = one.matrix(Q, P), other.matrix(Q, P)
    for found in (one.inner(other, (Q, P)), other.inner(one, (Q, P))):
        torch.testing.assert_close(found, (dense * other_dense).sum())
    expected = float((dense - other_dense).norm() / dense.norm())
    assert relative_difference(one, other, (Q, P)) == pytest.approx(expected)


def test_its_algebra_follows() -> None:
    operator = make()
    dense, b = operator.matrix(Q, P), torch.randn(Q, P)
    torch.testing.assert_close(operator.trace((Q, P)), dense.trace())
    spectrum = operator.spectrum((Q, P))
    assert spectrum is not None
    torch.testing.assert_close(spectrum, torch.linalg.eigvalsh(dense))
    found = operator.damped(0.1).solve(b)
    assert found.residual < 1e-7
    torch.testing.assert_close(operator.damped(0.1).apply(found.x), b, rtol=1e-6, atol=1e-6)
    assert operator.cost((Q, P)) > 0
    assert operator.input_moment() is None and operator.shift(0.1) is None
    assert not operator.stands_by_input and not operator.kronecker_terms()


def test_what_only_a_large_matrix_would_tell_is_refused() -> None:
    operator = Spiked(torch.randn(1, 50, 60), torch.rand(()))
    assert operator.spectrum((50, 60)) is None
    for ask in (operator.trace, lambda shape: operator.inner(operator, shape)):
        with pytest.raises(CurvatureError, match=r"a spiked curvature of 50 .* let Spiked def"):
            ask((50, 60))


def test_it_is_merged_with_its_like() -> None:
    operators, weights = [make(0), make(1)], [0.3, 2.0]
    merged = merge(operators, weights, rank=1)
    assert merged.error == 0
    expected = sum(w * o.matrix(Q, P) for w, o in zip(weights, operators, strict=True))
    torch.testing.assert_close(merged.operator.matrix(Q, P), expected)
    with pytest.raises(CurvatureError, match="of kind diagonal and spiked have no sum"):
        merge([make(), Diagonal(torch.rand(Q, P))], [1, 1], rank=1)


def test_it_is_stored_in_half_precision() -> None:
    small = Compressor(dtype=torch.bfloat16)(make(), (Q, P))
    assert small.operator.state()["spikes"].dtype == torch.bfloat16
    assert 0 < small.error < 0.01


def test_priors_of_it_are_kept_penalised_and_merged(model: nn.Module, tmp_path: Path) -> None:
    register_operator(Spiked)
    try:
        made = [prior(model, seed) for seed in (0, 1)]
        made[0].save_pretrained(tmp_path / "prior")
        loaded = ConsolidationPrior.from_pretrained(tmp_path / "prior")
        (block,) = loaded.curvature.blocks
        assert isinstance(block.operator, Spiked)
        delta = -torch.ones(Q, P)  # the anchor lies one above the model
        for damping in (0.0, 0.2):
            value, _ = ConsolidationPenalty(model, [loaded], [2.0], damping=damping)()
            expected = 2 * block.operator.damped(damping).quadratic(delta)
            torch.testing.assert_close(value, expected)
        merged = ConsolidationPrior.merge(made, rank=1)
        assert merged.curvature.blocks[0].operator.kind == "spiked"
        (layer,) = summarise_layers(loaded)
        assert layer.operator == "spiked"
        values = torch.linalg.eigvalsh(block.operator.matrix(Q, P))
        assert layer.spectrum.largest == pytest.approx(float(values.max()), rel=1e-5)
        (difference,) = compare_blocks(made[0], loaded)
        assert difference.curvature == pytest.approx(0, abs=1e-6)
    finally:
        OPERATORS.pop("spiked")


def test_two_classes_of_one_kind_are_refused() -> None:
    class Other(Spiked):
        kind = "diagonal"

    with pytest.raises(CurvatureError, match="kind 'diagonal' is Diagonal's; give Other another"):
        register_operator(Other)
