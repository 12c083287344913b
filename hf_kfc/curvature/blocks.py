"""Parameter blocks: which parameters share one operator, and how they form its matrix Δ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import prod

import torch
from torch import Tensor

from .operators import Operator

__all__ = ["Block", "Curvature", "Layout", "matrix_shape"]


class Layout(StrEnum):
    """How the weight of a layer is laid out as a matrix with outputs as rows."""

    OUT_IN = "out_in"
    """``[out, in, ...]``: Linear and convolutions, trailing dimensions flattened into inputs."""
    IN_OUT = "in_out"
    """``[in, out]``: GPT-2's Conv1D, and embeddings (a token is an input)."""
    ELEMENTWISE = "elementwise"
    """Any shape, one column per parameter: normalisation layers, and L2 on any parameter."""


def matrix_shape(layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Return (q, p) of the matrix that parameters of these shapes form."""
    weight = next(iter(shapes.values()))
    if layout is Layout.ELEMENTWISE:
        return prod(weight), len(shapes)
    rows, columns = (weight[0], prod(weight[1:]))
    if layout is Layout.IN_OUT:
        rows, columns = columns, rows
    return rows, columns + len(shapes) - 1


@dataclass(frozen=True)
class Block:
    """Parameters that share one curvature operator.

    Args:
        name: Name of the module that owns the parameters (of the first one, if they are tied).
        layout: How the weight becomes a matrix.
        shapes: Parameter names and shapes: the weight, then the bias if there is one.
        operator: The curvature of the joined matrix.
    """

    name: str
    layout: Layout
    shapes: Mapping[str, tuple[int, ...]]
    operator: Operator

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (q, p) of the joined matrix."""
        return matrix_shape(self.layout, self.shapes)

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Join parameter-shaped tensors into the matrix [q, p], the bias as its last column.

        Args:
            tensors: At least this block's parameters by name; other names are not looked at.
        """
        weight, *bias = (tensors[name] for name in self.shapes)
        columns = [self._weight_matrix(weight), *(b.reshape(-1, 1) for b in bias)]
        return torch.cat(columns, dim=1) if bias else columns[0]

    def split(self, matrix: Tensor) -> dict[str, Tensor]:
        """Undo :meth:`join`: parameter-shaped tensors of a matrix [q, p], by name."""
        (weight_name, weight_shape), *bias = self.shapes.items()
        width = matrix.shape[1] - len(bias)
        weight = matrix[:, :width]
        weight = weight.T if self.layout is Layout.IN_OUT else weight
        parts = {weight_name: weight.reshape(weight_shape)}
        parts |= {name: matrix[:, width].reshape(shape) for name, shape in bias}
        return parts

    def _weight_matrix(self, weight: Tensor) -> Tensor:
        if self.layout is Layout.ELEMENTWISE:
            return weight.reshape(-1, 1)
        return weight.T if self.layout is Layout.IN_OUT else weight.flatten(1)


@dataclass(frozen=True)
class Curvature:
    """What the loss looks like around one set of parameters, block by block.

    Args:
        blocks: The parameter blocks; no parameter stands in two.
        num_examples: Number of examples the operators are a mean over (0: no data was used).
        ignored: Names of parameters left out on purpose.
    """

    blocks: tuple[Block, ...]
    num_examples: int
    ignored: tuple[str, ...] = ()

    @property
    def parameters(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all covered parameters."""
        return {name: shape for block in self.blocks for name, shape in block.shapes.items()}

    def quadratic(self, delta: Mapping[str, Tensor]) -> Tensor:
        """Return Σ_blocks ⟨Δ, F·Δ⟩: twice the predicted increase of the mean loss.

        Args:
            delta: Displacement of every covered parameter, by name.
        """
        return torch.stack([b.operator.quadratic(b.join(delta)) for b in self.blocks]).sum()
