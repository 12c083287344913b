"""Blocks that cover some of the tokens of an embedding."""

import pytest
import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_kfc.curvature import CurvatureArguments, estimate_curvature
from hf_kfc.curvature.blocks import Block, Layout
from hf_kfc.curvature.operators import Diagonal, Kronecker, KroneckerEigen
from hf_kfc.errors import CurvatureError

VOCABULARY, WIDTH = 7, 3


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, input_ids, attention_mask):
        hidden = self.words(input_ids) * attention_mask[..., None]
        return SequenceClassifierOutput(logits=self.head(hidden.sum(1)))


def examples() -> list[dict[str, torch.Tensor]]:
    rows = [[1, 1, 2], [2, 3, 0], [1, 2, 0], [5, 5, 5], [2, 6, 0]]
    ids = torch.tensor(rows)
    mask = (ids > 0).long()
    mask[4, 1] = 0  # token 6 stands at a position that does not count
    return [
        {"input_ids": i, "attention_mask": m, "labels": torch.tensor(n % 2)}
        for n, (i, m) in enumerate(zip(ids, mask, strict=True))
    ]


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("kind", ["diagonal", "kronecker", "kronecker_eigen"])
def test_examples_are_counted_and_not_positions(kind, size):
    torch.manual_seed(0)
    args = CurvatureArguments(curvature=kind, curvature_batch_size=size)
    collator = torch.utils.data.default_collate
    words, head = estimate_curvature(Bag(), examples(), collator, args).blocks
    assert words.input_examples.tolist() == [0, 2, 4, 1, 0, 1, 0]
    assert head.input_examples is None
    assert (words.is_embedding, head.is_embedding) == (True, False)


def operators() -> list:
    torch.manual_seed(0)
    root = torch.randn(WIDTH, WIDTH)
    basis = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q
    return [
        Diagonal(torch.rand(WIDTH, VOCABULARY)),
        Kronecker(torch.rand(VOCABULARY), root @ root.T),
        KroneckerEigen(torch.empty(0), basis, torch.rand(WIDTH, VOCABULARY)),
    ]


@pytest.mark.parametrize("operator", operators(), ids=lambda o: o.kind)
def test_a_part_by_inputs_is_the_whole_where_the_other_rows_do_not_move(operator):
    operator = operator.to(dtype=torch.get_default_dtype())
    whole = Block("words", Layout.IN_OUT, {"w": (VOCABULARY, WIDTH)}, operator)
    kept = torch.tensor([1, 2, 5])
    part = whole.of_inputs(kept)
    delta = torch.zeros(VOCABULARY, WIDTH)
    delta[kept] = torch.randn(3, WIDTH)

    assert part.shape == (WIDTH, 3)
    assert part.anchor_shapes == {"w": (3, WIDTH)}
    matrix = part.join(part.covered({"w": delta}))
    assert torch.equal(matrix, delta[kept].T)
    expected = whole.operator.apply(whole.join({"w": delta}))
    product = part.operator.apply(matrix)
    torch.testing.assert_close(product, expected[:, kept])
    torch.testing.assert_close(part.operator.quadratic(matrix), operator.quadratic(delta.T))

    gradient = part.split(product)["w"]
    torch.testing.assert_close(gradient[kept], product.T)
    assert torch.count_nonzero(gradient[[0, 3, 4, 6]]) == 0

    smaller = part.of_inputs(torch.tensor([0, 2]))
    assert smaller.inputs.tolist() == [1, 5]


def test_correlated_inputs_have_no_parts():
    dense = Kronecker(torch.eye(VOCABULARY), torch.eye(WIDTH))
    with pytest.raises(CurvatureError, match="has no part by inputs"):
        dense.of_inputs(torch.tensor([0]))
