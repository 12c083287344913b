"""Curvatures in less memory: factors of low rank plus a diagonal, and half precision."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CurvatureError
from ..precision import wide, wide_dtype
from .operators import (
    Kronecker,
    KroneckerStack,
    KroneckerSum,
    LowRankKronecker,
    LowRankKroneckerStack,
    LowRankKroneckerSum,
    Operator,
    relative_difference,
)
from .operators.checks import bad_factor
from .operators.kronecker import Factors
from .operators.low_rank import LowRankFactors

__all__ = ["Compressed", "Compressor"]

_SMALL: dict[type[Factors], type[LowRankFactors]] = {
    Kronecker: LowRankKronecker,
    KroneckerSum: LowRankKroneckerSum,
    KroneckerStack: LowRankKroneckerStack,
}
"""What becomes of low rank, and what it is then."""


@dataclass(frozen=True)
class Compressed:
    """A curvature in less memory.

    Args:
        operator: F̃.
        error: ‖F̃ − F‖ / ‖F‖ in the Frobenius norm, exact in float64; 0 of F = 0.
    """

    operator: Operator
    error: float


class Compressor:
    """Compresses the curvatures of one prior, so that layers that share tensors still do.

    With a rank k, a factor of each Kronecker product becomes U Uᵀ + diag(d): U holds its k largest
    eigenpairs, d the diagonal of what they leave, so the factor's own diagonal is kept, and with
    it the trace that damping depends on. Both terms are positive semi-definite. A product that
    would not get smaller is kept as it is.

    In half precision a factor that is kept as a matrix is rounded entry by entry. Where that makes
    it indefinite, its diagonal is raised just enough: a penalty that is negative in some direction
    would reward moving there without bound.

    Args:
        rank: k ≥ 1; None keeps the factors.
        dtype: Of all tensors, ``torch.bfloat16`` or ``torch.float32``; None keeps it.

    Raises:
        CurvatureError: A value is none of these.

    Example:
        >>> factor = torch.ones(50, 50) + torch.eye(50)  # of rank one plus a diagonal
        >>> compressed = Compressor(rank=1)(Kronecker(factor, factor), (50, 50))
        >>> compressed.operator.kind, round(compressed.error, 2)
        ('low_rank_kronecker', 0.04)
    """

    def __init__(self, rank: int | None = None, dtype: torch.dtype | None = None) -> None:
        if rank is not None and rank < 1:
            raise CurvatureError(f"rank {rank} keeps no eigenpair; give 1 or more, or None")
        if dtype not in (None, torch.float32, torch.bfloat16):
            raise CurvatureError(
                f"curvature is not stored in {dtype}; give torch.bfloat16, torch.float32 or None"
            )
        self.rank = rank
        self.dtype = dtype
        self._parts: dict[int, tuple[Tensor, Tensor]] = {}
        self._rounded: dict[int, Tensor] = {}

    def __call__(self, operator: Operator, shape: tuple[int, int]) -> Compressed:
        """Compress the curvature of one block.

        Args:
            operator: F; kept alive by the caller until all blocks are done.
            shape: (q, p) of the block.

        Raises:
            CurvatureError: A rank is given, and the operator holds other tensors of its inputs
                than the factors of Kronecker products.
        """
        compressed = operator
        if self.rank is not None and operator.input_names:
            compressed = self._of_low_rank(operator)
        if self.dtype is not None and compressed is operator:
            compressed = self._in_dtype(operator)
        if compressed is operator:
            return Compressed(operator, 0.0)
        return Compressed(compressed, relative_difference(operator, compressed, shape) or 0.0)

    def _of_low_rank(self, operator: Operator) -> Operator:
        small = next((low for kind, low in _SMALL.items() if isinstance(operator, kind)), None)
        if small is None or not isinstance(operator, Factors):
            raise CurvatureError(
                f"a {operator.kind} curvature holds no Kronecker factors that could be of low "
                "rank; compress what was estimated with curvature='kronecker', or give a dtype "
                "alone"
            )
        assert self.rank is not None
        factors = [(own, operator.is_diagonal(own)) for own in (operator.A, operator.G)]
        kept = sum(_numbers(own.shape[-1], self.rank, vector) for own, vector in factors)
        if kept >= sum(_numbers(own.shape[-1], None, vector) for own, vector in factors):
            return operator
        (A_U, A_d), (G_U, G_d) = (self._low_rank(*factor) for factor in factors)
        return small(A_U, A_d, G_U, G_d)

    def _low_rank(self, factor: Tensor, diagonal: bool) -> tuple[Tensor, Tensor]:
        assert self.rank is not None
        if id(factor) not in self._parts:
            dtype = self.dtype or wide_dtype(factor.dtype)
            own = factor.double()
            self._parts[id(factor)] = _low_rank_plus_diagonal(own, self.rank, dtype, diagonal)
        return self._parts[id(factor)]

    def _in_dtype(self, operator: Operator) -> Operator:
        names = operator.factor_names
        return operator.from_state(
            {name: self._round(tensor, name in names) for name, tensor in operator.state().items()}
        )

    def _round(self, tensor: Tensor, is_factor: bool) -> Tensor:
        if id(tensor) not in self._rounded:
            self._rounded[id(tensor)] = self._rounded_anew(tensor, is_factor)
        return self._rounded[id(tensor)]

    def _rounded_anew(self, tensor: Tensor, is_factor: bool) -> Tensor:
        assert self.dtype is not None
        size = tensor.shape[-1] if tensor.ndim else 0
        if not is_factor or tensor.shape[-2:] != (size, size):
            return tensor.to(self.dtype)
        stack = tensor.reshape(-1, size, size)
        return torch.stack([_definite(factor, self.dtype) for factor in stack]).view_as(tensor)


def _numbers(size: int, rank: int | None, diagonal: bool) -> int:
    """Count the numbers of a factor of low rank plus a diagonal, or of one as it is."""
    whole = size if rank is None else min(rank, size) + 1
    return size if diagonal else size * whole


def _low_rank_plus_diagonal(
    factor: Tensor, rank: int, dtype: torch.dtype, diagonal: bool
) -> tuple[Tensor, Tensor]:
    """Return U in a dtype, and the d that keeps the factor's diagonal whatever U was rounded to.

    Args:
        factor: A matrix [p, p] or its diagonal [p], or those of several products stacked.
        rank: Columns of U.
        dtype: Of both.
        diagonal: Whether it holds diagonals.
    """
    if diagonal:
        return factor.new_empty(*factor.shape, 0, dtype=dtype), factor.to(dtype)
    values, vectors = torch.linalg.eigh(factor)
    roots = values[..., None, -rank:].clamp(min=0).sqrt()
    U = (vectors[..., -rank:] * roots).to(dtype)
    left = factor.diagonal(dim1=-2, dim2=-1) - U.double().square().sum(-1)
    return U, left.clamp(min=0).to(dtype)


def _definite(factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Round a positive semi-definite matrix to one that is symmetric and semi-definite too."""
    factor = wide(factor)
    rounded = ((factor + factor.T) / 2).to(dtype)
    if not bad_factor("rounded", rounded.to(factor.dtype), len(factor)):
        return rounded
    exact = rounded.double()
    raised = exact.diagonal() - torch.linalg.eigvalsh(exact)[0]
    entries = raised.to(dtype)
    above = torch.nextafter(entries, torch.full_like(entries, torch.inf))
    rounded.diagonal().copy_(torch.where(entries.double() < raised, above, entries))
    return rounded
