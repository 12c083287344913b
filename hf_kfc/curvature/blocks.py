"""Parameter blocks: which parameters share one operator, and how they form its matrix Δ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import prod

import torch
from torch import Tensor

from .operators import Operator

__all__ = ["Block", "Curvature", "Layout", "matrix_of", "matrix_shape", "weight_of"]


class Layout(StrEnum):
    """How the weight of a layer is laid out as a matrix with outputs as rows."""

    OUT_IN = "out_in"
    """``[out, in, ...]``: Linear and convolutions, trailing dimensions flattened into inputs."""
    IN_OUT = "in_out"
    """``[in, out]``: GPT-2's Conv1D, and embeddings (a token is an input)."""
    STACK_OUT_IN = "stack_out_in"
    """``[n, out, in]``: experts in one tensor, whose outputs are those of one after another."""
    STACK_IN_OUT = "stack_in_out"
    """``[n, in, out]``: the same, transposed."""
    ELEMENTWISE = "elementwise"
    """Any shape, one column per parameter: normalisation layers, and L2 on any parameter."""


STACKS = (Layout.STACK_OUT_IN, Layout.STACK_IN_OUT)


def matrix_of(layout: Layout, weight: Tensor) -> Tensor:
    """Return a weight as a matrix with outputs as rows; a view where it can be one."""
    if layout is Layout.ELEMENTWISE:
        return weight.reshape(-1, 1)
    if layout is Layout.STACK_IN_OUT:
        return weight.mT.flatten(0, 1)
    if layout is Layout.STACK_OUT_IN:
        return weight.flatten(0, 1)
    return weight.T if layout is Layout.IN_OUT else weight.flatten(1)


def weight_of(layout: Layout, matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Undo :func:`matrix_of`."""
    if layout is Layout.STACK_IN_OUT:
        return matrix.reshape(_transposed(shape)).mT
    return (matrix.T if layout is Layout.IN_OUT else matrix).reshape(shape)


def _transposed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-2], shape[-1], shape[-2])


def matrix_shape(layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Return (q, p) of the matrix that parameters of these shapes form."""
    weight = next(iter(shapes.values()))
    if layout is Layout.ELEMENTWISE:
        return prod(weight), len(shapes)
    if layout in STACKS:
        number, rows, columns = weight if layout is Layout.STACK_OUT_IN else _transposed(weight)
        return number * rows, columns + len(shapes) - 1
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
        inputs: Of an embedding, the tokens whose rows the block covers, in ascending order, shape
            [k]; the others move freely. None: all.
        input_examples: Of an embedding, the number of examples in which each of its inputs was
            seen, shape [p]; it stays with whoever has the data.
    """

    name: str
    layout: Layout
    shapes: Mapping[str, tuple[int, ...]]
    operator: Operator
    inputs: Tensor | None = field(default=None, compare=False)
    input_examples: Tensor | None = field(default=None, compare=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (q, p) of the joined matrix."""
        q, p = matrix_shape(self.layout, self.shapes)
        return (q, p) if self.inputs is None else (q, len(self.inputs))

    @property
    def tokens(self) -> Tensor:
        """Which tokens an embedding's rows are of, shape [p]: all, unless some are left out."""
        rows = next(iter(self.shapes.values()))[0]
        return torch.arange(rows) if self.inputs is None else self.inputs

    @property
    def is_embedding(self) -> bool:
        """Whether the block is an embedding's, in which every token stands alone."""
        return self.layout is Layout.IN_OUT and len(self.shapes) == 1

    @property
    def anchor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the anchors: those of the parameters, without rows that are not covered."""
        if self.inputs is None:
            return dict(self.shapes)
        ((name, shape),) = self.shapes.items()
        return {name: (len(self.inputs), *shape[1:])}

    def covered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Take from parameter-shaped tensors what the block covers, in the anchors' shapes.

        Args:
            tensors: At least this block's parameters by name; other names are not looked at.
        """
        own = {name: tensors[name] for name in self.shapes}
        if self.inputs is None:
            return own
        return {name: tensor[self.inputs.to(tensor.device)] for name, tensor in own.items()}

    def of_inputs(self, kept: Tensor) -> Block:
        """Return the block of some of its tokens only.

        Args:
            kept: Which of its present columns stay, ascending, shape [k].

        Raises:
            CurvatureError: The block is not an embedding's.
        """
        inputs = kept if self.inputs is None else self.inputs[kept]
        examples = None if self.input_examples is None else self.input_examples[kept]
        return replace(
            self,
            operator=self.operator.of_inputs(kept),
            inputs=inputs,
            input_examples=examples,
        )

    def join(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Join tensors into the matrix [q, p], the bias as its last column.

        Args:
            tensors: In the shapes of the anchors, by name; other names are not looked at.
        """
        weight, *bias = (tensors[name] for name in self.shapes)
        columns = [matrix_of(self.layout, weight), *(b.reshape(-1, 1) for b in bias)]
        return torch.cat(columns, dim=1) if bias else columns[0]

    def split(self, matrix: Tensor) -> dict[str, Tensor]:
        """Undo :meth:`join`: parameter-shaped tensors of a matrix [q, p], by name.

        Rows that the block does not cover are zero.
        """
        (weight_name, weight_shape), *bias = self.shapes.items()
        if self.inputs is not None:
            full = matrix.new_zeros(weight_shape)
            full[self.inputs.to(matrix.device)] = matrix.T
            return {weight_name: full}
        width = matrix.shape[1] - len(bias)
        parts = {weight_name: weight_of(self.layout, matrix[:, :width], weight_shape)}
        parts |= {name: matrix[:, width].reshape(shape) for name, shape in bias}
        return parts


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

    @property
    def coverage(self) -> dict[str, int]:
        """Number of covered entries of parameters, by kind of operator."""
        found: dict[str, int] = {}
        for block in self.blocks:
            entries = sum(prod(shape) for shape in block.anchor_shapes.values())
            found[block.operator.kind] = found.get(block.operator.kind, 0) + entries
        return found

    def quadratic(self, delta: Mapping[str, Tensor]) -> Tensor:
        """Return Σ_blocks ⟨Δ, F·Δ⟩: twice the predicted increase of the mean loss.

        Curvature in half precision is brought to the displacement's dtype.

        Args:
            delta: Displacement of every covered parameter, by name, in the parameters' shapes.
        """
        values = []
        for block in self.blocks:
            matrix = block.join(block.covered(delta))
            operator = block.operator.to(dtype=matrix.dtype)
            values.append(operator.quadratic(matrix))
        return torch.stack(values).sum()
