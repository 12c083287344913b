"""The fast ways to factors give the factors of the plain way, and do less."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from tiny.curvatures import (
    LABELS,
    SHARINGS,
    assert_equal_matrices,
    estimate,
    images,
    offered_forward,
    offered_positions,
)
from tiny.data import choices, pad_choices
from tiny.models import bert
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertForMultipleChoice
from transformers.pytorch_utils import Conv1D

from hf_kfc.curvature import Curvature, CurvatureArguments
from hf_kfc.curvature.frozen_linear import FrozenLinear
from hf_kfc.curvature.moments import nearest_definite
from hf_kfc.curvature.operators import Kronecker
from hf_kfc.curvature_arguments import Products
from hf_kfc.priors import ConsolidationPrior


def _wide_bert(hidden_size: int = 104) -> BertForMultipleChoice:
    """Wide enough that products are halved, and deep enough that a layer has unused tokens."""
    model: BertForMultipleChoice = bert(
        hidden_size=hidden_size,
        num_hidden_layers=2,
        intermediate_size=4 * hidden_size,
        initializer_range=0.1,
    )
    return model


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("sharing", SHARINGS)
def test_half_the_products_give_the_whole_factors(sharing: str, labels: str) -> None:
    model, data = _wide_bert(), choices(4)
    fast, full = (
        images(
            estimate(model, data, pad_choices(), sharing=sharing, labels=labels, products=products)
        )
        for products in ("symmetric", "full")
    )
    assert_equal_matrices(fast, full)


@pytest.mark.parametrize("curvature", ["diagonal", "kronecker_eigen"])
def test_other_curvatures_are_the_same(curvature: str) -> None:
    model, data = _wide_bert(8), choices(4)
    fast, full = (
        images(estimate(model, data, pad_choices(), curvature=curvature, products=products))
        for products in ("symmetric", "full")
    )
    assert_equal_matrices(fast, full, rtol=1e-8)


def test_bfloat16_is_near() -> None:
    torch.set_default_dtype(torch.float32)
    model, data = _wide_bert(), choices(64)
    exact, near = (
        estimate(model, data, pad_choices(), products=products)
        for products in ("symmetric", "bfloat16")
    )
    errors = _errors(near, exact)
    assert 1e-5 < max(errors.values()) < 1e-2, errors


def _errors(near: Curvature, exact: Curvature) -> dict[str, float]:
    return {
        f"{a.name} {part}": float((x - y).norm() / y.norm())
        for a, b in zip(near.blocks, exact.blocks, strict=True)
        for part, x, y in (
            (name, a.operator.state()[name], value) for name, value in b.operator.state().items()
        )
        if part in ("A", "G")
    }


def _conv1d() -> nn.Module:
    layer = Conv1D(70, 33)
    nn.init.normal_(layer.bias)
    return layer


LINEARS: list[Callable[[], nn.Module]] = [
    lambda: nn.Linear(33, 70),
    lambda: nn.Linear(33, 70, bias=False),
    _conv1d,
]


def _run(layer: nn.Module, x: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    output = layer(x)
    output.backward(upstream)
    assert x.grad is not None
    return output.detach(), x.grad


@pytest.mark.parametrize("build", LINEARS, ids=["linear", "no bias", "Conv1D"])
def test_a_frozen_linear_layer_is_the_plain_one(build: Callable[[], nn.Module]) -> None:
    layer = build().to(torch.float64).requires_grad_(False)
    x, upstream = torch.randn(4, 3, 33), torch.randn(4, 3, 70)
    upstream[1:, 1] = 0
    expected = _run(layer, x, upstream)
    with FrozenLinear(half=False), FlopCounterMode(depth=0, display=False) as flops:
        actual = _run(layer, x, upstream)
    torch.testing.assert_close(actual, expected)
    # 12 rows forward, the 9 rows with a gradient backward
    assert flops.get_total_flops() == 2 * 33 * 70 * (12 + 9)


@pytest.mark.parametrize("build", LINEARS, ids=["linear", "no bias", "Conv1D"])
def test_a_wide_layer_is_multiplied_in_bfloat16(build: Callable[[], nn.Module]) -> None:
    layer = build().to(torch.float64).requires_grad_(False)
    x, upstream = torch.randn(4, 3, 33), torch.randn(4, 3, 70)
    expected = _run(layer, x, upstream)
    with FrozenLinear(half=True):
        actual = _run(layer, x, upstream)
    for ours, plain in zip(actual, expected, strict=True):
        assert ours.dtype == plain.dtype
        assert 1e-5 < (ours - plain).norm() / plain.norm() < 1e-2


def test_square_and_narrow_layers_keep_their_precision() -> None:
    for layer in (nn.Linear(40, 40), nn.Linear(40, 2)):
        layer.requires_grad_(False)
        x, upstream = torch.randn(3, 40), torch.randn(3, layer.out_features)
        expected = _run(layer, x, upstream)
        with FrozenLinear(half=True):
            torch.testing.assert_close(_run(layer, x, upstream), expected)


def test_trainable_layers_and_autocast_are_left_alone() -> None:
    layer = nn.Linear(33, 70)
    with FrozenLinear(half=True):
        layer(torch.randn(2, 33)).sum().backward()
        assert layer.weight.grad is not None
        layer = layer.float().requires_grad_(False)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(torch.randn(2, 33, dtype=torch.float32)).dtype == torch.bfloat16


@pytest.mark.parametrize("build", LINEARS, ids=["linear", "no bias", "Conv1D"])
def test_a_layer_without_rows_has_gradients_without_rows(build: Callable[[], nn.Module]) -> None:
    """An expert that no token is sent to."""
    layer = build().requires_grad_(False)
    with FrozenLinear(half=False):
        for shape in ((0, 33), (0, 2, 33), (2, 0, 33)):
            output, gradient = _run(layer, torch.randn(shape), torch.randn(*shape[:-1], 70))
            assert output.shape == (*shape[:-1], 70) and gradient.shape == shape


@pytest.mark.parametrize("build", LINEARS, ids=["linear", "no bias", "Conv1D"])
def test_a_model_may_write_to_an_output(build: Callable[[], nn.Module]) -> None:
    layer = build().requires_grad_(False)
    results = []
    x, upstream = torch.randn(2, 3, 33), torch.randn(2, 3, 70)
    for half in (None, False):
        own = x.clone().requires_grad_()
        with nullcontext() if half is None else FrozenLinear(half=half):
            output = layer(own)
            output /= 3
        output.backward(upstream)
        results.append(own.grad)
    torch.testing.assert_close(results[1], results[0])


def test_a_bias_that_learns_alone_has_its_gradient() -> None:
    layer = nn.Linear(33, 70)
    layer.weight.requires_grad_(False)
    with FrozenLinear(half=False):
        layer(torch.randn(2, 33)).sum().backward()
    assert layer.bias.grad is not None
    torch.testing.assert_close(layer.bias.grad, torch.full((70,), 2.0))


@pytest.mark.parametrize("width", [8, 104])
def test_a_prior_of_bfloat16_products_is_usable(width: int) -> None:
    """Rounded products have negative eigenvalues; a prior refuses an indefinite factor."""
    torch.set_default_dtype(torch.float32)
    model, data = _wide_bert(width), choices(24)
    prior = ConsolidationPrior.estimate(
        model,
        data,
        pad_choices(),
        CurvatureArguments(products="bfloat16"),
        task="old",
        forward=offered_forward,
        position_mask=offered_positions,
    )
    exact = estimate(model, data, pad_choices())
    assert max(_errors(prior.curvature, exact).values()) < 0.03
    for block in prior.curvature.blocks:
        for name in block.operator.factor_names:
            factor = block.operator.state()[name].double()
            if factor.ndim == 2:
                assert torch.linalg.eigvalsh(factor)[0] >= 0


@pytest.mark.parametrize("products", Products)
def test_what_was_summed_needs_no_second_look(products: Products) -> None:
    torch.set_default_dtype(torch.float32)
    curvature = estimate(_wide_bert(), choices(24), pad_choices(), products=products.value)
    found = [b for b in curvature.blocks if isinstance(b.operator, Kronecker)]
    assert found
    for block in found:
        assert Kronecker(block.operator.A, block.operator.G).problems(block.shape) == []


def test_the_nearest_definite_matrix() -> None:
    rows = torch.randn(30, 12)
    definite = rows.T @ rows
    assert torch.equal(nearest_definite(definite), definite)
    values, vectors = torch.linalg.eigh(definite)
    values[:2] = torch.tensor([-2.0, -0.1])
    found = nearest_definite((vectors * values) @ vectors.T)
    torch.testing.assert_close(found, (vectors * values.clamp(min=0)) @ vectors.T)


def test_unknown_products_are_refused() -> None:
    with pytest.raises(Exception, match="unknown products 'double'; choose one of"):
        estimate(_wide_bert(8), choices(1), pad_choices(), products="double")
