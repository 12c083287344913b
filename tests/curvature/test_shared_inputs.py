"""Layers that read the same inputs share A; those that cut other inputs out of them do not."""

import pytest
import torch
from tiny.curvatures import assert_equal_matrices, dense, estimate, operators
from tiny.data import choices, pad_choices
from tiny.layers import Logits, vectors
from tiny.models import bert
from torch import Tensor, nn


@pytest.mark.parametrize("curvature", ["kronecker", "kronecker_eigen"])
def test_query_key_and_value_share_one_input_factor(curvature: str) -> None:
    estimated = operators(estimate(bert(), choices(3), pad_choices(), curvature=curvature))
    name = "A" if curvature == "kronecker" else "U_A"
    factors = {layer: op.state()[name] for layer, op in estimated.items() if name in op.state()}
    attention = "bert.encoder.layer.0.attention"
    shared = factors[f"{attention}.self.query"]
    assert factors[f"{attention}.self.key"] is shared
    assert factors[f"{attention}.self.value"] is shared
    others = [f for layer, f in factors.items() if ".self." not in layer]
    assert not any(other is shared for other in others)
    assert len({id(f) for f in others}) == len(others)


def test_shared_input_factors_are_right() -> None:
    """Each of three layers on one input has the curvature that it has without the others."""
    layers = {name: nn.Linear(4, 3) for name in "abc"}

    def run(m: Logits, x: Tensor) -> Tensor:
        return m.a(x).tanh() * m.b(x) + m.c(x)

    model, data = Logits(run, **layers), vectors(5)
    together = dense(estimate(model, data))
    for name in "abc":
        alone = estimate(model, data, ignore=[f"{other}.*" for other in "abc" if other != name])
        assert_equal_matrices(dense(alone), {name: together[name]})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (nn.Conv2d(2, 3, (1, 3)), nn.Conv2d(2, 3, (3, 1))),
        (nn.Conv2d(2, 3, 2), nn.Conv2d(2, 3, 2, dilation=2)),
        (nn.Conv2d(2, 3, 2), nn.Conv2d(2, 3, 2, stride=2)),
        (nn.Conv2d(2, 3, 2), nn.Conv2d(2, 3, 2, padding=1)),
        (nn.Conv1d(1, 3, 3, bias=False), nn.Conv1d(1, 3, 2)),
        (nn.Embedding(5, 3), nn.Embedding(5, 3, padding_idx=1)),
    ],
    ids=["kernel", "dilation", "stride", "padding", "bias", "padding_idx"],
)
def test_other_settings_read_other_inputs(first: nn.Module, second: nn.Module) -> None:
    """Two layers on one tensor share A only if they cut the same inputs out of it."""

    def pooled(module: nn.Module, x: Tensor) -> Tensor:
        out = module(x)
        return out.mean(1) if isinstance(module, nn.Embedding) else out.flatten(2).mean(-1)

    def run(m: Logits, x: Tensor) -> Tensor:
        return pooled(m.a, x) + pooled(m.b, x)

    model = Logits(run, a=first.double(), b=second.double())
    if isinstance(first, nn.Embedding):
        data = [{**e, "x": torch.randint(5, (6,))} for e in vectors(4)]
    else:
        data = vectors(4, *((1, 6) if isinstance(first, nn.Conv1d) else (2, 5, 5)))
    together = estimate(model, data)
    for name, other in (("a", "b.*"), ("b", "a.*")):
        alone = estimate(model, data, ignore=[other])
        assert_equal_matrices(dense(alone), {name: dense(together)[name]})
