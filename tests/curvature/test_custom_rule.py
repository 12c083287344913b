"""A rule for a layer of one's own, by the public names alone."""

from collections.abc import Iterator

import pytest
import torch
from tiny.curvatures import assert_equal_matrices, dense, estimate, oracle
from tiny.layers import FACTORED, Probe, examples
from torch import Tensor, nn

from hf_kfc.curvature import LayerRule, Layout, register_rule
from hf_kfc.curvature.layers import RULES
from hf_kfc.errors import CurvatureError


class Gated(nn.Module):
    """z = (x² W + c) with the weight stored [in, out], under names of its own."""

    def __init__(self, inputs: int = 4, outputs: int = 3) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.randn(outputs))
        self.kernel = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x.square() @ self.kernel + self.offset


class Renamed(Gated):
    pass


class Changed(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


@pytest.fixture(autouse=True)
def rules() -> Iterator[None]:
    before = dict(RULES)

    @register_rule(Gated)
    class GatedRule(LayerRule):
        layout = Layout.IN_OUT
        names = ("kernel", "offset")

        def features(self, module: nn.Module, x: Tensor, examples: int) -> Tensor:
            return x.square().reshape(examples, -1, x.shape[-1])

    yield
    RULES.clear()
    RULES.update(before)


@pytest.mark.parametrize("make", [Gated, Renamed])
@pytest.mark.parametrize("labels", ["empirical", "exact"])
def test_its_curvature_is_that_of_the_oracle(make: type[nn.Module], labels: str) -> None:
    kind = FACTORED["linear"]
    one = Probe(make())
    for curvature in ("diagonal", "kronecker", "kronecker_eigen"):
        data = examples([kind.one()])  # of one example at one position all are exact
        estimated = estimate(one, data, curvature=curvature, labels="empirical")
        exact = oracle(one, data, estimated)
        if curvature == "diagonal":
            exact = {name: matrix.diagonal().diag() for name, matrix in exact.items()}
        assert_equal_matrices(dense(estimated), exact)
    data = examples([kind.many() for _ in range(5)])
    estimated = estimate(one, data, curvature="diagonal", labels=labels)
    assert list(estimated.parameters) == ["layer.kernel", "layer.offset"]
    exact = {k: v.diagonal().diag() for k, v in oracle(one, data, estimated, labels).items()}
    assert_equal_matrices(dense(estimated), exact)


def test_a_subclass_that_computes_something_else_has_no_rule() -> None:
    with pytest.raises(CurvatureError, match=r"layer.kernel, layer.offset \(its gradient is not"):
        estimate(Probe(Changed()), examples([torch.randn(1, 4)]), fallback="refuse")


def test_a_rule_that_is_wrong_is_noticed() -> None:
    @register_rule(Gated)
    class WrongRule(LayerRule):
        layout = Layout.IN_OUT
        names = ("kernel", "offset")

        def features(self, module: nn.Module, x: Tensor, examples: int) -> Tensor:
            return x.reshape(examples, -1, x.shape[-1])

    with pytest.raises(CurvatureError, match="is not made of the inputs and outputs"):
        estimate(Probe(Gated()), examples([torch.randn(1, 4)]), fallback="refuse")


def test_a_rule_is_for_modules() -> None:
    with pytest.raises(CurvatureError, match="is no class of torch modules"):
        register_rule(int)  # type: ignore[arg-type]
