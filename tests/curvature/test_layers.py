"""Where a layer's curvature is provably exact, it equals the brute-force Fisher."""

import pytest
import torch
from tiny.curvatures import LABELS, SHARINGS, assert_equal_matrices, dense, estimate, oracle
from tiny.layers import (
    BY_CHANNEL,
    CLASSES,
    EVERY,
    FACTORED,
    POSITIONS,
    Logits,
    Probe,
    examples,
    vectors,
)
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_kfc.curvature.layers import RULES, LayerRule, LinearRule, TiedEmbeddingRule

N = 3


def count_positions(probe: Probe, x: Tensor) -> int:
    out = probe.layer(x[None])
    return out[0, 0].numel() if isinstance(probe.layer, BY_CHANNEL) else out.shape[1]


def only(position: int, positions: int) -> Tensor:
    weights = torch.zeros(positions)
    weights[position] = 1.0
    return weights


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("kind", FACTORED)
def test_kronecker_is_exact_at_one_position(kind: str, labels: str, sharing: str) -> None:
    """Same input in all examples: F = mean(Σ g gᵀ) ⊗ a aᵀ, whatever g is."""
    model = Probe(FACTORED[kind].build())
    data = examples([FACTORED[kind].one()] * N)
    assert count_positions(model, data[0]["x"]) == 1
    curvature = estimate(model, data, labels=labels, sharing=sharing)
    assert_equal_matrices(dense(curvature), oracle(model, data, curvature, labels))


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("kind", FACTORED)
def test_expand_is_exact_when_one_position_of_equal_ones_is_read(kind: str, labels: str) -> None:
    """Same input a at all R positions, gradient at one: mean a aᵀ = a aᵀ and Σ_r g gᵀ = g gᵀ.

    ``average`` takes the mean of g gᵀ too, so it is this divided by R.
    """
    model = Probe(FACTORED[kind].build())
    data = examples([FACTORED[kind].same()] * N)
    positions = count_positions(model, data[0]["x"])
    assert positions > 1
    model.weights = only(1, positions)
    expand = estimate(model, data, labels=labels, sharing="expand")
    exact = oracle(model, data, expand, labels)
    assert_equal_matrices(dense(expand), exact)
    average = estimate(model, data, labels=labels, sharing="average")
    assert_equal_matrices(dense(average), {k: v / positions for k, v in exact.items()})


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("kind", FACTORED)
def test_reduce_is_exact_for_equal_positions(kind: str, labels: str) -> None:
    """Same input a at all positions: the gradient is Σ_r g_r aᵀ = (Σ_r g_r) aᵀ."""
    model = Probe(FACTORED[kind].build())
    data = examples([FACTORED[kind].same()] * N)
    model.weights = torch.randn(count_positions(model, data[0]["x"]))
    curvature = estimate(model, data, labels=labels, sharing="reduce")
    assert_equal_matrices(dense(curvature), oracle(model, data, curvature, labels))


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("kind", [k for k in FACTORED if not k.startswith("embedding")])
def test_reduce_is_exact_for_mean_pooling(kind: str, labels: str) -> None:
    """Mean-pooled outputs: g_r = g / R, so the gradient is Σ_r g/R a_rᵀ = g āᵀ.

    An embedding keeps the diagonal A of ``expand``, so it is left out.
    """
    model = Probe(FACTORED[kind].build())
    data = examples([FACTORED[kind].many()] * N)
    curvature = estimate(model, data, labels=labels, sharing="reduce")
    assert_equal_matrices(dense(curvature), oracle(model, data, curvature, labels))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sharing", SHARINGS)
def test_uses_are_positions(sharing: str, tied: bool) -> None:
    """A layer called twice, or two modules with the same parameters, on the same input a.

    ``expand`` and ``average``: one use is read, as for positions. ``reduce``: both are read.
    """
    first = nn.Linear(4, 3)
    second = nn.Linear(4, 3)
    second.weight, second.bias = first.weight, first.bias
    weights = (2.0, -0.5) if sharing == "reduce" else (1.0, 0.0)

    def run(model: Logits, x: Tensor) -> Tensor:
        again = model.second if tied else model.first
        return weights[0] * model.first(x).tanh() + weights[1] * again(x)

    model = Logits(run, first=first, **({"second": second} if tied else {}))
    data = vectors(1) * N
    curvature = estimate(model, data, sharing=sharing)
    assert list(curvature.parameters) == ["first.weight", "first.bias"]
    factor = 0.5 if sharing == "average" else 1.0
    exact = oracle(model, data, curvature)
    assert_equal_matrices(dense(curvature), {k: factor * v for k, v in exact.items()})


@pytest.mark.parametrize("tied", [False, True])
def test_reduce_is_exact_for_the_mean_over_uses(tied: bool) -> None:
    """Different inputs at two uses whose outputs are averaged: the gradient is g āᵀ."""
    first, second = nn.Linear(4, 3), nn.Linear(4, 3)
    second.weight, second.bias = first.weight, first.bias

    def run(model: Logits, x: Tensor) -> Tensor:
        again = model.second if tied else model.first
        return model.first(x) + again(x.flip(-1))

    model = Logits(run, first=first, **({"second": second} if tied else {}))
    data = vectors(1) * N
    curvature = estimate(model, data, sharing="reduce")
    assert_equal_matrices(dense(curvature), oracle(model, data, curvature))


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("kind", EVERY)
def test_diagonal_is_the_mean_squared_per_example_gradient(kind: str, labels: str) -> None:
    """Always exact: many positions, each example its own input, repeated tokens."""
    model = Probe(EVERY[kind].build())
    data = examples([EVERY[kind].many() for _ in range(5)])
    model.weights = torch.randn(count_positions(model, data[0]["x"]))
    curvature = estimate(model, data, labels=labels, curvature="diagonal")
    (block,) = curvature.blocks
    exact = oracle(model, data, curvature, labels)[block.name].diagonal().reshape(block.shape)
    assert_equal_matrices({"": block.operator.state()["diagonal"]}, {"": exact})


@pytest.mark.parametrize("kind", EVERY)
def test_diagonal_is_not_the_squared_batch_mean_gradient(kind: str) -> None:
    model = Probe(EVERY[kind].build())
    data = examples([EVERY[kind].many() for _ in range(5)])
    model.weights = torch.randn(count_positions(model, data[0]["x"]))
    (block,) = estimate(model, data, curvature="diagonal").blocks
    batch = {k: torch.stack([e[k] for e in data]) for k in data[0]}
    labels = batch.pop("labels")
    loss = nn.functional.cross_entropy(model(**batch).logits, labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    mean = block.join(dict(zip(block.shapes, gradients, strict=True))).square()
    diagonal = block.operator.state()["diagonal"]
    assert (diagonal >= mean - 1e-12).all()  # by Jensen
    assert diagonal.sum() > 1.1 * mean.sum()


def test_diagonal_of_a_layer_used_twice() -> None:
    """The per-example gradient is the sum over uses, squared after the sum."""
    model = Logits(lambda m, x: m.first(x).tanh() * m.first(x.flip(-1)), first=nn.Linear(4, 3))
    data = vectors(4)
    curvature = estimate(model, data, curvature="diagonal")
    exact = oracle(model, data, curvature)["first"].diagonal()
    assert_equal_matrices({"": dense(curvature)["first"].diagonal()}, {"": exact})


def test_in_place_activation_changes_nothing() -> None:
    """The gradient is taken before the activation, also where the output is a view ([N, R, q])."""
    data = vectors(4, POSITIONS, 4)
    diagonals = []
    for inplace in (False, True):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace), nn.Linear(5, 3), nn.ReLU(inplace))
        model = Logits(lambda m, x: m.net(x).sum(1), net=net)
        curvature = estimate(model, data, curvature="diagonal")
        exact = oracle(model, data, curvature)
        diagonals.append({k: v.diagonal() for k, v in dense(curvature).items()})
        assert_equal_matrices(diagonals[-1], {k: v.diagonal() for k, v in exact.items()})
    assert_equal_matrices(*diagonals)


CONVOLUTIONS = {
    "same": nn.Conv1d(2, 3, 4, padding="same"),
    "zeros": nn.Conv1d(2, 3, 3, padding=2, stride=2, dilation=2),
    "reflect": nn.Conv1d(2, 3, 3, padding=2, padding_mode="reflect", bias=False),
    "replicate": nn.Conv2d(2, 3, (3, 2), padding=(1, 2), padding_mode="replicate"),
    "uneven": nn.Conv2d(2, 3, (1, 3), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
    "valid": nn.Conv2d(2, 3, 2, padding="valid"),
    "volume": nn.Conv3d(2, 3, (2, 1, 3), stride=(1, 2, 1), padding=(0, 1, 2), dilation=(2, 1, 1)),
}


@pytest.mark.filterwarnings("ignore:Using padding=")
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_patches_times_the_weight_are_the_output(name: str) -> None:
    """Whatever the stride, padding and dilation: output = patches · weight matrixᵀ."""
    module = CONVOLUTIONS[name].double()
    rule = RULES[type(module)]
    x = torch.randn(2, 2, *(5, 6, 7)[: len(module.kernel_size)])
    weight = module.weight.flatten(1)
    if module.bias is not None:
        weight = torch.cat([weight, module.bias[:, None]], dim=1)
    expected = rule.outputs(module, module(x), 2)
    torch.testing.assert_close(rule.inputs(module, x, 2) @ weight.T, expected)


def test_padding_token_has_no_curvature() -> None:
    """Row ``padding_idx`` never learns, in any kind of curvature."""
    model = Probe(nn.Embedding(5, 3, padding_idx=0))
    data = examples([torch.tensor([0, 2, 0, 1])] * 2)
    for kind in ("diagonal", "kronecker", "kronecker_eigen"):
        (matrix,) = dense(estimate(model, data, curvature=kind)).values()
        of_row = matrix.diagonal().reshape(3, 5)
        assert (of_row[:, [0, 3, 4]] == 0).all()
        assert (of_row[:, [1, 2]] > 0).all()


class Trigrams(nn.Module):
    """Every token sees the next one, the last of a text its padding, as in MobileBERT."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(6, 4, padding_idx=0), nn.Linear(8, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        x = self.embed(input_ids)
        following = nn.functional.pad(x[:, 1:], (0, 0, 0, 1))
        scores = self.mix(torch.cat([x, following], dim=-1)).tanh()
        return SequenceClassifierOutput(logits=(scores * attention_mask[..., None]).sum(1))


@pytest.mark.parametrize("sharing", SHARINGS)
def test_a_padding_token_that_is_read_changes_nothing(sharing: str) -> None:
    model = Trigrams()

    def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        ids = nn.utils.rnn.pad_sequence([row["ids"] for row in rows], batch_first=True)
        labels = torch.stack([row["labels"] for row in rows])
        return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": labels}

    data = [
        {"ids": torch.randint(1, 6, (length,)), "labels": torch.randint(CLASSES, ())}
        for length in (5, 2, 3)
    ]
    together = dense(estimate(model, data, collate, sharing=sharing))
    alone = dense(estimate(model, data, collate, sharing=sharing, curvature_batch_size=1))
    assert_equal_matrices(together, alone)


def test_large_gradients_are_squared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LayerRule, "chunk", 20)
    model = Probe(nn.Linear(4, 3))
    data = examples([torch.randn(POSITIONS, 4) for _ in range(5)])
    curvature = estimate(model, data, curvature="diagonal")
    exact = oracle(model, data, curvature)["layer"].diagonal()
    assert_equal_matrices({"": dense(curvature)["layer"].diagonal()}, {"": exact})


@pytest.mark.parametrize("held", [1, 9, 2**20])
def test_squared_gradients_are_the_same_however_few_numbers_are_held(
    held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_kfc.curvature.layers.base._IN_CACHE", held)
    examples, positions, q, tokens = 3, 5, 4, 7
    ids = torch.randint(-1, tokens, (examples, positions))
    g, h = torch.randn(2, examples, positions, q).double()
    z = torch.randn(examples, positions, tokens).double()
    one_hot = nn.functional.one_hot(ids + 1, tokens + 1)[..., 1:].double()
    total = torch.zeros(q, tokens).double()
    TiedEmbeddingRule().add_squared_sums(total, ids, g, h, z)
    expected = (torch.einsum("nrq,nrv->nqv", g, one_hot) + h.mT @ z).square().sum(0)
    torch.testing.assert_close(total, expected)
    total = torch.zeros(q, tokens).double()
    LinearRule().add_squared_gradients(total, z, g)
    torch.testing.assert_close(total, torch.einsum("nrq,nrv->nqv", g, z).square().sum(0))
