"""What no rule covers has its exact diagonal, by one example at a time."""

import logging
from typing import Any

import pytest
import torch
from tiny.curvatures import LABELS, assert_equal_matrices, dense, estimate, oracle
from tiny.layers import CLASSES, Logits, vectors
from tiny.models import OtherLinear
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_kfc.curvature import Curvature, Outputs
from hf_kfc.errors import CurvatureError

from .test_refusals import (
    GatedNorm,
    SquaredNorm,
    functional_head,
    once_for_all,
    read_twice,
    tokens_first,
)


class Bare(nn.Module):
    """A class token and a scale that no module's call reads."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 4))
        self.scale = nn.Parameter(torch.randn(()))
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> SequenceClassifierOutput:
        hidden = torch.cat([self.token.expand(len(x), 1, 4), x], dim=1).tanh()
        return SequenceClassifierOutput(logits=self.head(self.scale * hidden).tanh().sum(1))


class Routed(nn.Module):
    """Every token goes to one of two linear layers, by the sign of its first feature."""

    def __init__(self) -> None:
        super().__init__()
        self.below = nn.Linear(4, 4)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> SequenceClassifierOutput:
        hidden = self.below(x).tanh().flatten(0, 1)
        route = (x.flatten(0, 1)[:, 0] > 0).long()
        out = torch.zeros_like(hidden)
        for number, expert in enumerate(self.experts):
            rows = (route == number).nonzero()[:, 0]
            out = out.index_add(0, rows, expert(hidden[rows]).tanh())
        return SequenceClassifierOutput(logits=self.head(out.view_as(x).mean(1)))


def routed(*routes: tuple[int, ...]) -> list[dict[str, Tensor]]:
    data = vectors(len(routes), len(routes[0]), 4)
    for example, route in zip(data, routes, strict=True):
        signs = 2 * torch.tensor(route) - 1.0
        example["x"][:, 0] = example["x"][:, 0].abs() * signs
    return data


def looked_up(m: Any, x: Tensor) -> Tensor:
    return nn.functional.linear(m.embed(x).tanh().sum(1), m.embed.weight[:CLASSES])


def convolved(m: Any, x: Tensor) -> Tensor:
    return m.head(m.layer(x).flatten(1).tanh())


def normed(m: Any, x: Tensor) -> Tensor:
    return m.layer(x)[..., :3]


class SameLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


class Paired(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


def test_a_subclass_that_computes_the_same_otherwise_keeps_its_factors() -> None:
    model, data = Logits(normed, layer=SameLinear(4, 4)), vectors(5)
    assert [b.operator.kind for b in estimate(model, data).blocks] == ["kronecker"]
    other = Logits(normed, layer=OtherLinear(4, 4))
    assert [b.operator.kind for b in estimate(other, data).blocks] == ["diagonal"] * 2


CASES: dict[str, Any] = {
    "other_linear": (lambda: Logits(normed, layer=OtherLinear(4, 4)), lambda: vectors(5)),
    "pair": (
        lambda: Logits(lambda m, x: m.layer(x)[0][..., :3], layer=Paired(4, 4)),
        lambda: vectors(5),
    ),
    "bare": (Bare, lambda: vectors(5, 3, 4)),
    "transposed": (
        lambda: Logits(
            lambda m, x: m.head(m.layer(x).flatten(1)),
            layer=nn.ConvTranspose1d(3, 2, 2),
            head=nn.Linear(6, 3),
        ),
        lambda: vectors(5, 3, 2),
    ),
    "batch_norm": (
        lambda: Logits(convolved, layer=nn.BatchNorm1d(4), head=nn.Linear(12, 3)),
        lambda: vectors(5, 4, 3),
    ),
    "routed": (Routed, lambda: routed((0, 1), (0, 1), (0, 0), (1, 0), (1, 1))),
    "routed_by_chance": (Routed, lambda: routed((0, 1), (0, 1), (0, 0), (1, 1))),
    "functional_head": (lambda: Logits(functional_head, layer=nn.Linear(4, 4)), lambda: vectors(5)),
    "read_twice": (lambda: Logits(read_twice, layer=nn.Linear(4, 4)), lambda: vectors(5)),
    "squared_norm": (lambda: Logits(normed, layer=SquaredNorm()), lambda: vectors(5)),
    "gated_norm": (
        lambda: Logits(lambda m, x: m.layer(x, x.tanh())[..., :3], layer=GatedNorm(4)),
        lambda: vectors(5),
    ),
    "once_for_all": (
        lambda: Logits(once_for_all, embed=nn.Embedding(6, 4), head=nn.Linear(4, 3)),
        lambda: vectors(5, 2, 4),
    ),
    "tokens_first": (lambda: Logits(tokens_first, head=nn.Linear(4, 3)), lambda: vectors(5, 2, 4)),
}


def assert_exact(model: nn.Module, data: Any, labels: str, **arguments: Any) -> Curvature:
    estimated = estimate(model, data, curvature="diagonal", labels=labels, **arguments)
    assert estimated.parameters.keys() == dict(model.named_parameters()).keys()
    exact = oracle(model, data, estimated, labels)
    assert_equal_matrices(dense(estimated), {k: v.diagonal().diag() for k, v in exact.items()})
    return estimated


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", CASES)
def test_every_parameter_has_its_exact_diagonal(name: str, labels: str) -> None:
    make, data = CASES[name]
    assert_exact(make(), data(), labels, curvature_batch_size=4)


@pytest.mark.parametrize("kind", ["kronecker", "kronecker_eigen"])
@pytest.mark.parametrize("name", ["bare", "routed"])
def test_layers_with_a_rule_keep_their_factors(name: str, kind: str) -> None:
    make, data = CASES[name]
    model = make()
    estimated = estimate(model, data(), curvature=kind)
    kinds = {block.name: block.operator.kind for block in estimated.blocks}
    assert kinds["head"] == kind
    assert set(kinds.values()) == {kind, "diagonal"}
    order = list(dict(model.named_parameters()))
    assert [order.index(next(iter(b.shapes))) for b in estimated.blocks] == sorted(
        order.index(next(iter(b.shapes))) for b in estimated.blocks
    )


def test_what_it_covers_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="hf_kfc"):
        estimated = estimate(Bare(), vectors(3, 2, 4))
    assert estimated.coverage == {"diagonal": 5, "kronecker": 15}
    assert "curvature of 20 parameters: diagonal 25.0%, kronecker 75.0%" in caplog.text
    assert "2 parameters without a rule (25.0 % of all entries)" in caplog.text
    assert "token, scale (Bare)" in caplog.text


def bag(m: Any, x: Tensor) -> Tensor:
    return m.embed(x)[:, :CLASSES]


@pytest.mark.parametrize(("run", "table"), [(looked_up, nn.Embedding), (bag, nn.EmbeddingBag)])
def test_rows_of_embeddings_are_counted(run: Any, table: Any) -> None:
    model = Logits(run, embed=table(7, 4, padding_idx=0))
    ids = [[1, 1, 2], [2, 3, 0], [1, 5, 0]]
    data = [{"x": torch.tensor(row), "labels": torch.tensor(1)} for row in ids]
    (block,) = estimate(model, data).blocks
    assert block.is_embedding
    assert block.input_examples is not None
    assert block.input_examples.tolist() == [0, 2, 2, 1, 0, 1, 0]


def test_a_curvature_of_nothing_is_refused() -> None:
    """In-batch negatives: alone an example has none."""

    def in_batch(m: Any, x: Tensor) -> Tensor:
        hidden = m.layer(x)
        return hidden @ hidden.T + torch.zeros(1, 1)

    model = Logits(in_batch, layer=nn.Linear(4, 3))
    data = [{"x": torch.randn(4), "labels": torch.tensor(0)} for _ in range(4)]

    def collate(rows: list[Any]) -> dict[str, Tensor]:
        return {"x": torch.stack([r["x"] for r in rows]), "labels": torch.arange(len(rows))}

    def forward(m: nn.Module, batch: Any) -> Outputs:
        return Outputs(m(batch["x"]).logits, batch["labels"])

    for size in (1, 2):
        with pytest.raises(CurvatureError, match="F is 0 everywhere"):
            estimate(model, data, collate, forward=forward, curvature_batch_size=size)
