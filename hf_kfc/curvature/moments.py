"""Second moments Σ r rᵀ of many rows: the products that estimating Kronecker factors consists of.

A second moment is symmetric, so every block above the diagonal is multiplied once and mirrored at
the end; rows that are zero or do not count are not multiplied at all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..curvature_arguments import Products

__all__ = ["add_second_moment", "mirrored", "nearest_definite", "nonzero_rows", "whole"]

_STRIPS, _NARROWEST, _ALIGNED = 8, 64, 32
"""Into how many strips of rows a product is cut, and the fewest rows of one: more of them save
little of what is below the diagonal and are slower each."""
_MOST_USED = 0.75  # of rows


def add_second_moment(total: Tensor, rows: Tensor, products: Products) -> None:
    """Add Σ r rᵀ over rows, with a constant 1 appended to each if the total has a place for it.

    Only the blocks on and above the diagonal are filled; see :func:`mirrored`.

    Args:
        total: Changed in place, [n, n], or [n + 1, n + 1] where a bias goes with the rows.
        rows: Shape [m, n].
        products: In which precision, and whether in full.
    """
    n = rows.shape[1]
    width = n if products is Products.FULL else _width(n)
    rows = rows.to(torch.bfloat16 if products is Products.BFLOAT16 else total.dtype)
    for start in range(0, n, width):
        _add_product(
            total[start : min(start + width, n), start:n],
            rows[:, start : start + width],
            rows[:, start:],
        )
    if len(total) > n:
        total[:n, n] += rows.sum(0, dtype=total.dtype)
        total[n, n] += len(rows)


def mirrored(total: Tensor) -> Tensor:
    """Fill a total [n, n] below its diagonal in place, and return it: it is symmetric."""
    width = _width(len(total))
    for start in range(0, len(total), width):  # a whole transpose is read out of order
        stop = start + width
        block = total[start:stop, start:stop]
        block.copy_(block.triu() + block.triu(1).T)
        total[stop:, start:stop] = total[start:stop, stop:].T
    return total


def whole(total: Tensor, products: Products) -> Tensor:
    """Fill a total below its diagonal; the rounding of its products is no curvature."""
    matrix = mirrored(total)
    return nearest_definite(matrix) if products is Products.BFLOAT16 else matrix


def nearest_definite(matrix: Tensor) -> Tensor:
    """Return the definite matrix that is nearest to a symmetric one (Higham 1988).

    Products in bfloat16 are rounded to it before they are summed, which makes small eigenvalues
    negative: along those directions a penalty would reward moving without bound. What is left of
    them is as much as the result's own rounding may take away again.

    Args:
        matrix: Shape [n, n].
    """
    wider = matrix.double()
    least = torch.finfo(matrix.dtype).eps * float(wider.norm())
    shifted = wider.clone()
    shifted.diagonal().sub_(least)
    if not int(torch.linalg.cholesky_ex(shifted).info):  # a tenth of the eigenvalues' time
        return matrix
    values, vectors = torch.linalg.eigh(wider)
    nearest: Tensor = (vectors * values.clamp(min=least)) @ vectors.T
    return ((nearest + nearest.T) / 2).to(matrix.dtype)


def nonzero_rows(rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Leave out rows that are zero: of padding, and of tokens that no decision depends on.

    Copying the others costs as much as multiplying a few, such as the last of each text, saves.

    Args:
        rows: Shape [m, n].

    Returns:
        The other rows, and their indices; all and None where fewer than a quarter are zero.
    """
    if int(rows[:, :1].count_nonzero()) > _MOST_USED * len(rows):  # one column tells it, mostly
        return rows, None
    # The 2-norm is much faster than a comparison; it is 0 only where products underflow too.
    used = torch.linalg.vector_norm(rows, dim=-1).nonzero()[:, 0]
    if len(used) > _MOST_USED * len(rows):
        return rows, None
    return rows.index_select(0, used), used


def _width(n: int) -> int:
    """Rows of a strip."""
    return max(-(-n // (_STRIPS * _ALIGNED)) * _ALIGNED, _NARROWEST)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if left.dtype == total.dtype:
        total.addmm_(left.T, right)
    else:
        total += left.T @ right
