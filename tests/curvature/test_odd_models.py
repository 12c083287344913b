"""Modules of kinds that no survey of classes has: right by a rule or by the exact diagonal.

Each is held, whatever it does with its parameters, to gradients of one example after the other.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model
from tiny.curvatures import assert_equal_matrices, dense, estimate, oracle
from tiny.layers import CLASSES, Logits, vectors
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm


class ExpNorm(nn.Module):
    """Called …Norm, but what multiplies is no linear function of its gain."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return x / (1 + x.norm(dim=-1, keepdim=True)) * self.weight.exp()


class OffsetNorm(nn.Module):
    """An RMSNorm that multiplies by 1 + w, and adds a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * x.square().mean(-1, keepdim=True).rsqrt() * (1 + self.weight) + self.bias


class Standardised(nn.Conv1d):
    """Its weight is brought to mean 0 before it is used."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Widened(nn.Linear):
    """Parameters of low rank beside its own."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.A, self.B = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.A.T @ self.B.T


class Symmetric(nn.Module):
    def forward(self, X: Tensor) -> Tensor:
        return X.triu() + X.triu(1).T


class Bare(nn.Module):
    """Parameters that belong to no layer."""

    def __init__(self, *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.all = nn.ParameterList([nn.Parameter(torch.randn(shape)) for shape in shapes])


def linear() -> nn.Linear:
    return nn.Linear(4, 4)


def symmetric() -> nn.Module:
    return parametrize.register_parametrization(linear(), "weight", Symmetric())


def hooked() -> nn.Module:
    layer = linear()
    layer.register_forward_hook(lambda _, __, output: 3 * output)
    return layer


def scaled_gradient() -> nn.Module:
    layer = linear()
    layer.weight.register_hook(lambda gradient: 5 * gradient)
    return layer


def compiled() -> nn.Module:
    layer = linear()
    layer.compile(backend="eager")
    return layer


def one_weight_two_biases() -> nn.Module:
    pair = nn.ModuleList([linear(), linear()])
    pair[1].weight = pair[0].weight
    return pair


def called(m: Any, x: Tensor) -> Tensor:
    """The layer's output, by [N, features, positions] or [N, features]."""
    return m.head(m.layer(x).tanh().flatten(2).sum(2) if x.ndim > 2 else m.layer(x).tanh())


def of_sequence(m: Any, x: Tensor) -> Tensor:
    return m.head(m.layer(x)[0].tanh().mean(1))


def of_tokens(m: Any, x: Tensor) -> Tensor:
    return m.head(m.layer(x).sum(1).tanh())


def attending(m: Any, x: Tensor) -> Tensor:
    return m.head(m.layer(x, x, x)[0].tanh().mean(1))


def by_cell(m: Any, x: Tensor) -> Tensor:
    state = x.new_zeros(len(x), 4)
    for token in x.unbind(1):
        state = m.layer(token, state)
    return m.head(state)


def one_by_one(m: Any, x: Tensor) -> Tensor:
    return m.head(torch.stack([m.layer(row) for row in x]).tanh().mean(2))


def by_vmap(m: Any, x: Tensor) -> Tensor:
    return torch.vmap(lambda row: m.head(m.layer(row).tanh()))(x)


def by_sign(m: Any, x: Tensor) -> Tensor:
    rows = [m.layer[int(row[0] > 0)](row) for row in x]
    return m.head(torch.stack(rows).tanh())


def full_experts(m: Any, x: Tensor) -> Tensor:
    """Each expert takes three examples at most: which, only a whole batch shows."""
    out = torch.zeros_like(x)
    for sign, expert in enumerate(m.layer):
        rows = ((x[:, 0] > 0).long() == sign).nonzero()[:3, 0]
        out = out.index_add(0, rows, expert(x[rows]).tanh())
    return m.head(out)


def in_complex_numbers(m: Any, x: Tensor) -> Tensor:
    seen = torch.fft.fft(x) * torch.view_as_complex(m.layer.all[0])
    return m.head(torch.fft.ifft(seen).real)


def with_bare(m: Any, x: Tensor) -> Tensor:
    weight, bias, scale = m.layer.all
    return m.head(scale * nn.functional.linear(x, weight, bias).tanh())


def two_biases(m: Any, x: Tensor) -> Tensor:
    return m.head(m.layer[0](x).tanh() * m.layer[1](x.flip(-1)))


def transposed_too(m: Any, x: Tensor) -> Tensor:
    return m.head(nn.functional.linear(m.layer(x).tanh(), m.layer.weight.T))


def weights_of_weights(m: Any, x: Tensor) -> Tensor:
    weights = m.layer(x).view(-1, 4, 4)
    return m.head((weights @ x[..., None])[..., 0].tanh())


def with_every_row(m: Any, x: Tensor) -> Tensor:
    return m.head((m.layer(x).sum(1) + m.layer.weight.mean(0)).tanh())


def with_an_identity(m: Any, x: Tensor) -> Tensor:
    """As DoRA reads its weights' norms: by a call that no score depends on."""
    size = m.layer(torch.eye(4)).detach().norm()
    return m.head(m.layer(x).tanh() / size)


def ids() -> Any:
    labels = torch.randint(CLASSES, (6,))
    return [{"x": torch.randint(1, 7, (4,)), "labels": label} for label in labels]


flat, tokens, signal = partial(vectors, 7), partial(vectors, 7, 3, 4), partial(vectors, 7, 2, 6)
image = partial(vectors, 7, 2, 4, 4)
Case = tuple[Callable[[Any, Tensor], Tensor], Callable[[], nn.Module], Callable[[], Any], int]
DIAGONAL: dict[str, Case] = {
    "bilinear": (
        lambda m, x: m.head(m.layer(x, x.flip(-1)).tanh()),
        lambda: nn.Bilinear(4, 4, 4),
        flat,
        4,
    ),
    "lstm": (
        of_sequence,
        lambda: nn.LSTM(4, 2, 2, batch_first=True, bidirectional=True),
        tokens,
        4,
    ),
    "gru": (of_sequence, lambda: nn.GRU(4, 4, batch_first=True), tokens, 4),
    "gru_cell": (by_cell, lambda: nn.GRUCell(4, 4), tokens, 4),
    "bag_of_tokens": (called, lambda: nn.EmbeddingBag(7, 4), ids, 4),
    "table_of_bounded_rows": (of_tokens, lambda: nn.Embedding(7, 4, max_norm=1.0), ids, 4),
    "table_read_in_whole": (with_every_row, lambda: nn.Embedding(7, 4), ids, 4),
    "attention": (attending, lambda: nn.MultiheadAttention(4, 2, batch_first=True), tokens, 4),
    "transposed_convolution": (called, lambda: nn.ConvTranspose2d(2, 4, 2, stride=2), image, 4),
    "examples_without_a_batch": (one_by_one, lambda: nn.Conv1d(2, 4, 2), signal, 4),
    "standardised_weight": (called, lambda: Standardised(2, 4, 2), signal, 4),
    "instance_norm": (called, lambda: nn.InstanceNorm1d(2, affine=True), signal, 2),
    "exponential_gain": (called, ExpNorm, flat, 4),
    "parametric_relu": (called, lambda: nn.PReLU(4), flat, 4),
    "orthogonal": (called, lambda: parametrizations.orthogonal(linear()), flat, 4),
    "weight_norm": (called, lambda: parametrizations.weight_norm(linear()), flat, 4),
    "old_weight_norm": (called, lambda: weight_norm(nn.Conv1d(2, 4, 2)), signal, 4),
    "spectral_norm": (called, lambda: parametrizations.spectral_norm(linear()), flat, 4),
    "old_spectral_norm": (called, lambda: spectral_norm(linear()), flat, 4),
    "symmetric": (called, symmetric, flat, 4),
    "low_rank_beside": (called, Widened, flat, 4),
    "complex_view": (in_complex_numbers, lambda: Bare((4, 2)), flat, 4),
    "bare_linear_and_scalar": (with_bare, lambda: Bare((4, 4), (4,), ()), flat, 4),
    "one_weight_two_biases": (two_biases, one_weight_two_biases, flat, 4),
    "weight_read_twice": (transposed_too, lambda: nn.Linear(4, 6), flat, 4),
    "expert_for_each_example": (by_sign, lambda: nn.ModuleList([linear(), linear()]), flat, 4),
    "experts_of_a_capacity": (full_experts, lambda: nn.ModuleList([linear(), linear()]), flat, 4),
    "vmap": (by_vmap, linear, flat, 4),
    "output_hook": (called, hooked, flat, 4),
    "gradient_hook": (called, scaled_gradient, flat, 4),
}
"""How it is read, the layer, the data and the layer's outputs; it has no factors."""
FACTORS: dict[str, Case] = {
    "compiled": (called, compiled, flat, 4),
    "sparse_table": (of_tokens, lambda: nn.Embedding(7, 4, sparse=True), ids, 4),
    "pixel_shuffle": (
        called,
        lambda: nn.Sequential(nn.Conv2d(2, 8, 3), nn.PixelShuffle(2)),
        image,
        2,
    ),
    "reflected": (called, lambda: nn.Conv1d(2, 4, 3, padding=1, padding_mode="reflect"), signal, 4),
    "circular_by_groups": (
        called,
        lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular", groups=2),
        image,
        4,
    ),
    "weights_of_weights": (weights_of_weights, lambda: nn.Linear(4, 16), flat, 4),
    "dropout": (called, lambda: nn.Sequential(linear(), nn.Dropout(0.5)), flat, 4),
    "call_without_a_part": (with_an_identity, linear, flat, 4),
}
"""The same, of what has."""
NORMS: dict[str, Case] = {
    "offset_norm": (called, OffsetNorm, flat, 4),
    "batch_norm": (called, lambda: nn.BatchNorm1d(4), flat, 4),
}
"""The same, of what is a block of its own that is diagonal."""
ODD = DIAGONAL | FACTORS | NORMS


def model_of(case: Case) -> nn.Module:
    run, make, _, outputs = case
    return Logits(run, layer=make(), head=nn.Linear(outputs, CLASSES)).double()


def assert_is_exact(model: nn.Module, data: Any, batch_size: int) -> None:
    found = estimate(model, data, curvature="diagonal", curvature_batch_size=batch_size)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert found.parameters.keys() == learning
    exact = oracle(model, data, found)
    assert_equal_matrices(dense(found), {k: v.diagonal().diag() for k, v in exact.items()})


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("name", ODD)
def test_the_diagonal_is_that_of_one_example_after_the_other(name: str, batch_size: int) -> None:
    assert_is_exact(model_of(ODD[name]), ODD[name][2](), batch_size)


@pytest.mark.parametrize("name", ODD)
def test_factors_do_not_depend_on_the_batch_size(name: str) -> None:
    model, data = model_of(ODD[name]), ODD[name][2]()
    of_all, of_two = (estimate(model, data, curvature_batch_size=size) for size in (7, 2))
    kinds = {b.operator.kind for b in of_all.blocks if b.name.startswith("layer")}
    assert ("diagonal" in kinds) == (name not in FACTORS)
    assert_equal_matrices(dense(of_all), dense(of_two))


@pytest.mark.parametrize("name", FACTORS)
def test_factors_of_one_example_are_its_gradient(name: str) -> None:
    """G ⊗ A of a single use at a single position is the outer product of the gradient."""
    model, data = model_of(ODD[name]), ODD[name][2]()[:1]
    found = estimate(model, data, curvature="kronecker_eigen")
    exact = oracle(model, data, found)
    for block in found.blocks:
        torch.testing.assert_close(
            block.operator.trace(block.shape), exact[block.name].trace(), rtol=1e-9, atol=0
        )


ADAPTERS: dict[str, PeftConfig] = {
    "lora": LoraConfig(r=2, target_modules=["layer"], modules_to_save=["head"]),
    "dora": LoraConfig(r=2, target_modules=["layer"], use_dora=True),
    "ia3": IA3Config(target_modules=["layer"], feedforward_modules=[]),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters(name: str) -> None:
    model = get_peft_model(model_of((called, linear, flat, 4)), ADAPTERS[name]).double()
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.ndim == 2:
            nn.init.normal_(parameter)
    data = flat()
    assert_is_exact(model, data, 7)
    of_two, alone = (dense(estimate(model, data, curvature_batch_size=n)) for n in (2, 1))
    assert_equal_matrices(of_two, alone)
