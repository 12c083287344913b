"""The nearest sum of few Kronecker products to the curvatures of many tasks.

Everything is computed on the Gram matrices ⟨A_i, A_j⟩ and ⟨G_i, G_j⟩: for n products whose sum is
approximated by r, the matrices at hand are n × n, whatever the layer's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import CurvatureError
from ..precision import wide, wide_dtype
from .operators import (
    Kronecker,
    KroneckerStack,
    KroneckerSum,
    Operator,
    relative_difference,
)
from .operators.kronecker import refuse_unlike

__all__ = ["Merged", "merge", "merge_sharing"]

_CHUNK = 2**22
_STEPS = 100
_SETTLED = 1e-6

Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Merged:
    """The curvature of several tasks in one.

    Args:
        operator: F̃.
        error: ‖F̃ − Σ_i w_i F_i‖ / ‖Σ_i w_i F_i‖ in the Frobenius norm; 0 of F = 0.
    """

    operator: Operator
    error: float


def merge(operators: Sequence[Operator], weights: Sequence[float], rank: int) -> Merged:
    """Merge one layer's curvatures of several tasks: Σ_i w_i F_i, or the nearest of its rank.

    Identities and diagonals are summed, stacks merged part by part. Of Kronecker products
    Σ_i w_i G_i ⊗ A_i, up to ``rank`` are kept as they are; more of them become Σ_s G̃_s ⊗ Ã_s with
    Ã_s = Σ_k c_sk A_k and G̃_s = Σ_j d_sj G_j. All c and d are non-negative, so
    every factor stays positive semi-definite. They are found by alternating non-negative least
    squares (Lawson & Hanson 1974), from clusters that are merged pair by pair. Of rank 1 the result
    is the best of all Kronecker products: the dominant singular vectors of the rearranged matrix
    (Van Loan & Pitsianis 1993), non-negative combinations by Perron and Frobenius, for
    ⟨A_i, A_j⟩ ≥ 0.

    Args:
        operators: F_i, one for each task.
        weights: w_i > 0.
        rank: The most Kronecker products that the result may have, r ≥ 1.

    Raises:
        CurvatureError: The operators are of kinds or shapes that have no common sum.

    Example:
        >>> old = Kronecker(torch.eye(3), torch.eye(2))
        >>> new = Kronecker(torch.diag(torch.tensor([1.0, 2.0, 3.0])), torch.eye(2))
        >>> round(merge([old, new], [0.5, 0.5], rank=1).error, 6)  # they share G: one product
        0.0
    """
    return merge_sharing([operators], weights, rank)[0]


def merge_sharing(
    layers: Sequence[Sequence[Operator]], weights: Sequence[float], rank: int
) -> list[Merged]:
    """Merge layers that share their input factors, so that they still do.

    As :func:`merge` of one layer whose G_i are block-diagonal with those of all layers: c and d
    are common to the layers, and the sum of squared relative errors is least.

    Args:
        layers: For each layer F_i of every task; for each task the same A in all layers.
        weights: w_i > 0, of the tasks.
        rank: The most Kronecker products that a result may have, r ≥ 1.

    Returns:
        One result for each layer; Kronecker products hold the same tensor A.

    Raises:
        CurvatureError: The operators are of kinds or shapes that have no common sum.
    """
    if rank < 1:
        raise CurvatureError(f"rank {rank} is no number of Kronecker products; give 1 or more")
    if all(operator.kronecker_terms() for operators in layers for operator in operators):
        return _merge_products(layers, weights, rank)
    return [_rounded(_sum(operators, weights), operators[0], rank) for operators in layers]


def _rounded(exact: Operator, like: Operator, rank: int) -> Merged:
    """Return Σ_i w_i F_i in the precision of F_1, of a stack's parts ``rank`` products at most."""
    dtype = wide_dtype(next(iter(like.state().values())).dtype)
    if not isinstance(exact, KroneckerStack) or exact.A.shape[1] <= rank:
        return Merged(exact.to(dtype=dtype), 0.0)
    A, G = (t.new_zeros(len(t), rank, *t.shape[2:]) for t in (exact.A, exact.G))
    for number, part in enumerate(exact.parts):
        for term, product in enumerate(merge([part], [1.0], rank).operator.kronecker_terms()):
            A[number, term], G[number, term] = product.A, product.G
    nearest, shape = KroneckerStack(A, G), (G[:, 0, 0].numel(), A.shape[-1])
    error = relative_difference(exact, nearest, shape) or 0.0
    return Merged(nearest.to(dtype=dtype), error)


def _sum(operators: Sequence[Operator], weights: Sequence[float]) -> Operator:
    """Return Σ_i w_i F_i in float64."""
    exact = [operator.to(dtype=torch.float64) for operator in operators]
    total: Operator = exact[0].scaled(weights[0])
    for operator, weight in zip(exact[1:], weights[1:], strict=True):
        total = total + operator.scaled(weight)
    return total


# --- Kronecker products --------------------------------------------------------------------------


def _merge_products(
    layers: Sequence[Sequence[Operator]], weights: Sequence[float], rank: int
) -> list[Merged]:
    terms = [[term for operator in own for term in operator.kronecker_terms()] for own in layers]
    inputs, outputs = [term.A for term in terms[0]], [[term.G for term in own] for own in terms]
    for name, factors in (("A", inputs), *(("G", own) for own in outputs)):
        refuse_unlike(name, factors)
    numbers = [len(operator.kronecker_terms()) for operator in layers[0]]
    w = np.repeat(np.array(weights, dtype=np.float64), numbers)
    if len(inputs) <= rank:  # every product is kept; the weights go into G, so that layers share A
        A = _stacked([wide(factor) for factor in inputs])
        scaled = [[x * wide(G) for G, x in zip(own, w.tolist(), strict=True)] for own in outputs]
        return [Merged(_sum_of(A, own), 0.0) for own in scaled]
    a = _gram(inputs)
    own_grams = [_gram(own) for own in outputs]
    squares = [float(np.sum(np.outer(w, w) * a * gram)) for gram in own_grams]
    g = sum(
        (gram / square for gram, square in zip(own_grams, squares, strict=True) if square),
        np.zeros_like(a),
    )
    C, D = _nearest(a, g, w, rank)
    sizes = C.sum(1, keepdims=True)  # every Ã_s is a mean of the A_k
    C, D = C / sizes, D * sizes
    A = _stacked(_combined(inputs, C))
    return [
        Merged(
            _sum_of(A, _combined(own, D)),
            _distance(D.T @ C, a, gram, w) / square**0.5 if square else 0.0,
        )
        for own, gram, square in zip(outputs, own_grams, squares, strict=True)
    ]


def _stacked(factors: list[Tensor]) -> Tensor:
    return factors[0] if len(factors) == 1 else torch.stack(factors)


def _sum_of(A: Tensor, G: list[Tensor]) -> Operator:
    return Kronecker(A, G[0]) if len(G) == 1 else KroneckerSum(A, torch.stack(G))


def _gram(factors: Sequence[Tensor]) -> Matrix:
    """Return ⟨A_i, A_j⟩ in float64, with a few rows of the factors at a time."""
    flat = [factor.reshape(-1) for factor in factors]
    size = max(1, _CHUNK // len(flat))
    gram = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for start in range(0, len(flat[0]), size):
        rows = torch.stack([factor[start : start + size].double() for factor in flat])
        gram += (rows @ rows.T).cpu()
    return gram.numpy()


def _combined(factors: Sequence[Tensor], weights: Matrix) -> list[Tensor]:
    """Return Σ_k c_sk A_k for every s, summed in float64."""
    totals = []
    for row in weights.tolist():
        total = torch.zeros_like(factors[0], dtype=torch.float64)
        for factor, weight in zip(factors, row, strict=True):
            if weight:
                total.add_(factor.double(), alpha=weight)
        totals.append(total.to(wide_dtype(factors[0].dtype)))
    return totals


# --- The search, on Gram matrices ----------------------------------------------------------------


def _nearest(a: Matrix, g: Matrix, w: Matrix, rank: int) -> tuple[Matrix, Matrix]:
    """Find the sum of ``rank`` products that is nearest to Σ_i w_i G_i ⊗ A_i.

    Args:
        a: ⟨A_i, A_j⟩, shape [n, n].
        g: ⟨G_i, G_j⟩, likewise.
        w: w_i > 0, shape [n].
        rank: r.

    Returns:
        C and D, non-negative: Ã_s = Σ_k C_sk A_k and G̃_s = Σ_j D_sj G_j. They have fewer than r
        rows if no more are needed.
    """
    alpha, gamma = np.sqrt(a.diagonal()), np.sqrt(g.diagonal())
    (alive,) = np.nonzero(alpha * gamma)
    if not len(alive):  # F = 0
        return np.full((1, len(w)), 1 / len(w)), np.zeros((1, len(w)))
    alpha, gamma = alpha[alive], gamma[alive]
    unit = _Search(
        _root(a[np.ix_(alive, alive)] / np.outer(alpha, alpha)),
        _root(g[np.ix_(alive, alive)] / np.outer(gamma, gamma)),
        w[alive] * alpha * gamma,
    )
    small_C, small_D = unit.refined(*unit.start(rank))
    C, D = np.zeros((2, len(small_C), len(w)))
    C[:, alive], D[:, alive] = small_C / alpha, small_D / gamma
    return C, D


class _Search:
    """Looks for C and D that make T̃ = L_gᵀ DᵀC L_a near to T = L_gᵀ diag(w) L_a.

    Args:
        L_a: A root of the matrix a = L_a L_aᵀ of ⟨A_i, A_j⟩, with factors of norm 1.
        L_g: Likewise of ⟨G_i, G_j⟩.
        w: Weights that hold the factors' norms.
    """

    def __init__(self, L_a: Matrix, L_g: Matrix, w: Matrix) -> None:
        self.L_a, self.L_g, self.w = L_a, L_g, w
        self.T = self._target(list(range(len(w))))

    def start(self, rank: int) -> tuple[Matrix, Matrix]:
        """Merge, pair by pair, the clusters that lose least as one product each."""
        clusters = [[index] for index in range(len(self.w))]
        losses: dict[tuple[int, ...], float] = {}

        def loss(cluster: list[int]) -> float:
            if (key := tuple(cluster)) not in losses:
                values = np.linalg.svd(self._target(cluster), compute_uv=False)
                losses[key] = float(np.square(values[1:]).sum())
            return losses[key]

        while len(clusters) > rank:
            one, other = min(
                combinations(clusters, 2), key=lambda p: loss(p[0] + p[1]) - loss(p[0]) - loss(p[1])
            )
            clusters = [c for c in clusters if c not in (one, other)] + [one + other]
        C, D = np.zeros((2, len(clusters), len(self.w)))
        for row, cluster in enumerate(clusters):
            C[row, cluster], D[row, cluster] = self._best_product(cluster)
        return C, D

    def refined(self, C: Matrix, D: Matrix) -> tuple[Matrix, Matrix]:
        """Alternate non-negative least squares for C and for D until the error settles."""
        error = self._error(C, D)
        for _ in range(_STEPS if len(C) > 1 else 0):  # a single product is the best already
            try:
                new_C = _least_squares(self.L_g.T @ D.T, self.L_a, self.T)
                new_D = _least_squares(self.L_a.T @ new_C.T, self.L_g, self.T.T)
            except RuntimeError:  # scipy gave up on a degenerate step: what is there is good
                break
            new = self._error(new_C, new_D)
            if not new < error:
                break
            settled = error - new < _SETTLED * error
            C, D, error = new_C, new_D, new
            if settled:
                break
        used = C.any(1) & D.any(1)
        return C[used], D[used]

    def _target(self, cluster: list[int]) -> Matrix:
        """Return T of some of the products only."""
        return (self.L_g[cluster].T * self.w[cluster]) @ self.L_a[cluster]

    def _error(self, C: Matrix, D: Matrix) -> float:
        return float(np.linalg.norm((D @ self.L_g).T @ (C @ self.L_a) - self.T))

    def _best_product(self, cluster: list[int]) -> tuple[Matrix, Matrix]:
        """Return the best c and d of one product: dominant singular vectors of T.

        Where the largest singular value is a double one, they can have mixed signs; from their
        absolute values the power iteration, which keeps signs, finds non-negative ones.
        """
        w, L_a, L_g = self.w[cluster], self.L_a[cluster], self.L_g[cluster]
        u, _, _ = np.linalg.svd(self._target(cluster))
        c = np.abs(w * (L_g @ u[:, 0]))
        for _ in range(_STEPS):
            d = w * (L_a @ (L_a.T @ c)) / np.square(L_a.T @ c).sum()
            c = w * (L_g @ (L_g.T @ d)) / np.square(L_g.T @ d).sum()
        return c, d


def _least_squares(X: Matrix, L: Matrix, T: Matrix) -> Matrix:
    """Return the C ≥ 0 of least ‖X C L − T‖."""
    from scipy.optimize import nnls  # noqa: PLC0415 - only merging needs scipy, which loads slowly

    Q, R = np.linalg.qr(X)
    solution, _ = nnls(np.kron(R, L.T), (Q.T @ T).reshape(-1))
    return np.asarray(solution).reshape(X.shape[1], len(L))


def _root(gram: Matrix) -> Matrix:
    """Return L with L Lᵀ = gram, without the columns that rounding alone would fill."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
    return np.asarray(vectors[:, kept] * np.sqrt(values[kept]))


def _distance(M: Matrix, a: Matrix, g: Matrix, w: Matrix) -> float:
    """Return ‖Σ_jk M_jk G_j ⊗ A_k − Σ_i w_i G_i ⊗ A_i‖."""
    return float(np.linalg.norm(_root(g).T @ (M - np.diag(w)) @ _root(a)))
