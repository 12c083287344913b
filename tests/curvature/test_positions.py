"""Which rows of a layer's tensors count, and for which example."""

import pytest
import torch

from hf_kfc.curvature import default_position_mask
from hf_kfc.curvature.positions import Positions
from hf_kfc.errors import CurvatureError

TOKENS = torch.tensor([[1, 1, 0], [1, 0, 0]], dtype=torch.bool)  # [2, 3]
CHOICES = torch.tensor(  # [2, 2, 3]
    [[[1, 1, 1], [1, 1, 0]], [[1, 0, 0], [0, 0, 0]]], dtype=torch.bool
)


@pytest.mark.parametrize("leading", [(2, 3), (6,)])
def test_tokens(leading: tuple[int, ...]) -> None:
    assert torch.equal(Positions(TOKENS).valid(leading, ""), TOKENS)


@pytest.mark.parametrize("leading", [(4, 3), (12,), (2, 6), (2, 2, 3)])
def test_tokens_of_candidates(leading: tuple[int, ...]) -> None:
    assert torch.equal(Positions(CHOICES).valid(leading, ""), CHOICES.reshape(2, 6))


@pytest.mark.parametrize("leading", [(4,), (2, 2), (4, 1), (2, 2, 1)])
def test_candidates_that_have_a_token_count(leading: tuple[int, ...]) -> None:
    expected = [[True, True], [True, False]]
    assert Positions(CHOICES).valid(leading, "").tolist() == expected


@pytest.mark.parametrize("mask", [TOKENS, CHOICES])
def test_one_row_per_example(mask: torch.Tensor) -> None:
    assert Positions(mask).valid((2,), "").tolist() == [[True], [True]]
    assert Positions(mask).valid((2, 1), "").tolist() == [[True], [True]]


def test_pixels_count_if_nothing_is_masked() -> None:
    positions = Positions(torch.ones(2, dtype=torch.bool))
    for leading in ((2, 5, 4), (2, 20), (4, 10)):
        valid = positions.valid(leading, "")
        assert valid.shape == (2, 20)
        assert valid.all()


@pytest.mark.parametrize(
    ("mask", "leading"),
    [
        (TOKENS, (2, 5)),
        (TOKENS, (3, 2)),
        (TOKENS, (1, 3)),
        (CHOICES, (3, 4)),
        (CHOICES, (3, 2, 2)),
        (torch.ones(2, 3, dtype=torch.bool), (3, 2)),
        (torch.ones(2, dtype=torch.bool), (3, 4)),
        (torch.ones(2, dtype=torch.bool), ()),
    ],
)
def test_other_shapes_are_refused(mask: torch.Tensor, leading: tuple[int, ...]) -> None:
    with pytest.raises(CurvatureError, match=r"'encoder\.x'"):
        Positions(mask).valid(leading, "encoder.x")


def test_output_computed_once_is_separated() -> None:
    x, output = torch.arange(3)[None], torch.randn(1, 3, 5)
    for mask, rows in ((TOKENS, 2), (CHOICES, 4)):
        x_rows, rows_of_output = Positions(mask).separate(x, output)
        assert x_rows.shape == (rows, 3)
        assert rows_of_output.shape == (rows, 3, 5)
        assert (rows_of_output == output).all()


def test_other_outputs_are_left_alone() -> None:
    per_row = torch.randn(2, 3, 4), torch.randn(2, 3, 5)
    other_length = torch.randn(1, 7, 4), torch.randn(1, 7, 5)
    for x, output in (per_row, other_length):
        same_x, same_output = Positions(TOKENS).separate(x, output)
        assert same_x is x
        assert same_output is output
    alone = torch.randn(1, 3, 4), torch.randn(1, 3, 5)
    same_x, same_output = Positions(TOKENS[:1]).separate(*alone)
    assert same_x is alone[0]
    assert same_output is alone[1]


PAIRS = TOKENS[:, :, None] & TOKENS[:, None]
FORMS = {
    "numbers": TOKENS.float(),
    "of heads": TOKENS[:, None, None],
    "of pairs": PAIRS.long(),
    "of pairs of heads": PAIRS[:, None],
    "causal": PAIRS.tril(),
    "added": (1 - TOKENS.float()) * -1e4,
    "added to heads": ((1 - PAIRS.float()) * torch.finfo(torch.float32).min)[:, None],
}


@pytest.mark.parametrize("name", FORMS)
def test_masks_of_other_forms_tell_the_same_tokens(name: str) -> None:
    batch = {"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": FORMS[name]}
    assert torch.equal(default_position_mask(batch), TOKENS)


def test_an_added_mask_that_masks_nothing() -> None:
    batch = {"input_ids": torch.ones(2, 3, dtype=torch.long), "attention_mask": torch.zeros(2, 3)}
    assert default_position_mask(batch).all()


def test_candidates_that_are_as_many_as_tokens() -> None:
    batch = {"input_ids": torch.ones(2, 3, 3, dtype=torch.long), "attention_mask": PAIRS}
    assert torch.equal(default_position_mask(batch), PAIRS)
