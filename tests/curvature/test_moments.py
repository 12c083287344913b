"""Second moments by strips, over the rows that matter, against the plain product."""

import pytest
import torch

from hf_kfc.curvature.moments import add_second_moment, mirrored, nonzero_rows
from hf_kfc.curvature_arguments import Products


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("size", [1, 16, 95, 96, 97, 200, 389])
@pytest.mark.parametrize("products", [Products.FULL, Products.SYMMETRIC])
def test_it_is_the_product(products: Products, size: int, bias: bool) -> None:
    batches = [torch.randn(7, size), torch.randn(3, size)]
    total = torch.zeros(size + bias, size + bias)
    for rows in batches:
        add_second_moment(total, rows, products)
    rows = torch.cat(batches)
    if bias:
        rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
    torch.testing.assert_close(mirrored(total), rows.T @ rows)


def test_half_precision_rows_are_summed_in_the_totals_precision() -> None:
    rows = torch.full((1000, 100), 1.0, dtype=torch.bfloat16)
    total = torch.zeros(101, 101, dtype=torch.float32)
    for _ in range(3):
        add_second_moment(total, rows, Products.SYMMETRIC)
    assert torch.equal(mirrored(total), torch.full((101, 101), 3000.0, dtype=torch.float32))


def test_bfloat16_sums_many_batches_without_losing_the_later_ones() -> None:
    """A total kept in bfloat16 would stop growing at 256."""
    total = torch.zeros(3, 3, dtype=torch.float32)
    for _ in range(1000):
        add_second_moment(total, torch.ones(1, 2), Products.BFLOAT16)
    assert torch.equal(mirrored(total), torch.full((3, 3), 1000.0, dtype=torch.float32))


@pytest.mark.parametrize("products", [Products.SYMMETRIC, Products.BFLOAT16])
def test_no_row_adds_nothing(products: Products) -> None:
    total = torch.zeros(4, 4)
    add_second_moment(total, torch.empty(0, 3), products)
    assert not total.any()


def test_nonzero_rows() -> None:
    rows = torch.tensor([[0.0, 0.0], [0.0, -1e-30], [0.0, 0.0], [2.0, 0.0]])
    kept, used = nonzero_rows(rows)
    assert used is not None
    assert used.tolist() == [1, 3]
    assert torch.equal(kept, rows[[1, 3]])
    few = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])[:, None]  # zeros: not worth a copy
    kept, used = nonzero_rows(few)
    assert used is None
    assert kept is few
    assert len(nonzero_rows(torch.zeros(3, 2))[0]) == 0
