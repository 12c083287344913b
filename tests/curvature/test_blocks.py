"""Blocks join parameters into one matrix and split it again."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny.curvatures import dense, estimate, oracle
from tiny.layers import Mlp, vectors
from torch import nn

from hf_kfc.curvature import Block, Curvature, Diagonal, Identity, Layout, identity_curvature

SHAPES: dict[str, tuple[Layout, dict[str, tuple[int, ...]], tuple[int, int]]] = {
    "linear": (Layout.OUT_IN, {"w": (3, 4), "b": (3,)}, (3, 5)),
    "linear_no_bias": (Layout.OUT_IN, {"w": (3, 4)}, (3, 4)),
    "conv1d": (Layout.OUT_IN, {"w": (3, 2, 5), "b": (3,)}, (3, 11)),
    "conv2d": (Layout.OUT_IN, {"w": (3, 2, 2, 5), "b": (3,)}, (3, 21)),
    "gpt2": (Layout.IN_OUT, {"w": (4, 3), "b": (3,)}, (3, 5)),
    "embedding": (Layout.IN_OUT, {"w": (7, 3)}, (3, 7)),
    "norm": (Layout.ELEMENTWISE, {"w": (2, 3), "b": (2, 3)}, (6, 2)),
    "norm_no_bias": (Layout.ELEMENTWISE, {"w": (6,)}, (6, 1)),
    "scalar": (Layout.ELEMENTWISE, {"w": ()}, (1, 1)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_split_undoes_join(name: str) -> None:
    layout, shapes, shape = SHAPES[name]
    block = Block(name, layout, shapes, Identity())
    tensors = {k: torch.randn(s) for k, s in shapes.items()}
    matrix = block.join(tensors | {"other": torch.randn(9)})
    assert block.shape == tuple(matrix.shape) == shape
    parts = block.split(matrix)
    assert list(parts) == list(shapes)
    for key, tensor in tensors.items():
        assert torch.equal(parts[key], tensor)
    other = torch.randn(shape)
    assert torch.equal(block.join(block.split(other)), other)


def test_rows_are_outputs_and_the_bias_is_the_last_column() -> None:
    linear = nn.Linear(4, 3)
    tensors = dict(linear.named_parameters())
    for layout, weight in ((Layout.OUT_IN, linear.weight), (Layout.IN_OUT, linear.weight.T)):
        shapes = {"weight": tuple(weight.shape), "bias": (3,)}
        matrix = Block("", layout, shapes, Identity()).join(tensors | {"weight": weight})
        x = torch.randn(4)
        torch.testing.assert_close(matrix @ torch.cat([x, torch.ones(1)]), linear(x))


def test_join_is_differentiable_and_split_takes_its_gradient_back() -> None:
    weight, bias = torch.randn(3, 4, requires_grad=True), torch.randn(3, requires_grad=True)
    block = Block("", Layout.OUT_IN, {"w": (3, 4), "b": (3,)}, Identity())
    target = torch.randn(3, 5)
    (block.join({"w": weight, "b": bias}) * target).sum().backward()
    parts = block.split(target)
    assert torch.equal(weight.grad, parts["w"])  # type: ignore[arg-type]
    assert torch.equal(bias.grad, parts["b"])  # type: ignore[arg-type]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_quadratic_is_the_sum_over_blocks(seed: int) -> None:
    """With diagonals it is Σ d_i Δ_i² over all parameters."""
    torch.manual_seed(seed)
    model = Mlp()
    curvature = estimate(model, vectors(3), curvature="diagonal")
    assert curvature.parameters == {k: tuple(p.shape) for k, p in model.named_parameters()}
    delta = {k: torch.randn(s) for k, s in curvature.parameters.items()}
    expected = torch.zeros(())
    for block in curvature.blocks:
        assert isinstance(block.operator, Diagonal)
        for key, d in block.split(block.operator.diagonal).items():
            expected += (d * delta[key].square()).sum()
    torch.testing.assert_close(curvature.quadratic(delta), expected)
    assert curvature.quadratic(delta) >= 0


def test_quadratic_of_the_exact_blocks() -> None:
    """One layer, one position: the quadratic is the mean squared directional derivative."""
    model = Mlp()
    data = vectors(1)
    curvature = estimate(model, data)
    delta = {k: torch.randn(s) for k, s in curvature.parameters.items()}
    exact = oracle(model, data, curvature)
    expected = torch.zeros(())
    for block in curvature.blocks:
        row = block.join(delta).reshape(-1)
        expected += row @ exact[block.name] @ row
    torch.testing.assert_close(curvature.quadratic(delta), expected)


def test_identity_curvature_is_the_squared_distance() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.randn(()))
            self.mixed = nn.Bilinear(2, 3, 4)
            self.frozen = nn.Linear(2, 2).requires_grad_(False)

    model = Odd()
    curvature = identity_curvature(model, ignore=["*.bias"])
    assert isinstance(curvature, Curvature)
    assert list(curvature.parameters) == ["scale", "mixed.weight"]
    assert curvature.ignored == ("frozen.bias", "mixed.bias")
    assert curvature.num_examples == 0
    delta = {k: torch.randn(s) for k, s in curvature.parameters.items()}
    expected = sum((d.square().sum() for d in delta.values()), torch.zeros(()))
    torch.testing.assert_close(curvature.quadratic(delta), expected, check_dtype=False)
    assert all(m.shape[0] == m.shape[1] for m in dense(curvature).values())
