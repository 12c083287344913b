"""Examples as a collator takes them, kept as one tensor a column however uneven they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from ..errors import ProbeError

__all__ = ["Column", "Rows", "ranges"]

_MOST = 2**31 - 1
_LARGEST = 2**24
"""The most numbers of one padded row that are not its own: those of others may ask for any."""


@dataclass(frozen=True, eq=False)
class Column:
    """One column of all rows: a number, a list, or a list of lists in each, to any depth.

    Args:
        values: The numbers of all rows one after another: bool, uint8, int32 or float32.
        lengths: For each level of lists from the outermost on, how many items each list has; none
            where a row has a single number.
        are_tensors: Whether rows hold tensors, which are lists of equal length at each level.
    """

    values: Tensor
    lengths: tuple[Tensor, ...] = ()
    are_tensors: bool = False

    @classmethod
    def of(cls, name: str, values: Sequence[Any]) -> Column:
        """Keep a column.

        Args:
            name: Its name, for the error.
            values: One of each row: numbers, nested lists of them, arrays or tensors.

        Raises:
            ProbeError: They are no numbers, none that are finite, or of different depth.
        """
        lengths = list[Tensor]()
        are_tensors = isinstance(values[0], Tensor | np.ndarray)
        level: list[Any] = [v.cpu().numpy() if isinstance(v, Tensor) else v for v in values]
        while any(nested := [isinstance(v, list | tuple | np.ndarray) for v in level]):
            if not all(nested):
                raise ProbeError(f"column '{name}' has lists in some rows and numbers in others")
            lengths.append(torch.tensor([len(v) for v in level], dtype=torch.int32))
            if all(isinstance(v, np.ndarray) and v.ndim == 1 for v in level):
                level = np.concatenate(level)  # type: ignore[assignment]
                break
            level = [item for v in level for item in v]
        return cls(_numbers(name, np.asarray(level)), tuple(lengths), are_tensors)

    def __len__(self) -> int:
        return len(self.lengths[0] if self.lengths else self.values)

    @cached_property
    def _starts(self) -> list[list[int]]:
        """Where each list of a level begins in the next one."""
        return [[0, *torch.cumsum(lengths.long(), 0).tolist()] for lengths in self.lengths]

    def row(self, index: int) -> Any:
        """Return what a row holds: a number, nested lists, or a tensor."""
        if self.are_tensors:
            low, high, shape = index, index + 1, list[int]()
            for lengths, starts in zip(self.lengths, self._starts, strict=True):
                shape.append(int(lengths[low]) if low < high else 0)
                low, high = starts[low], starts[high]
            return _widened(self.values[low:high]).reshape(shape)
        return self._nested(0, index)

    def _nested(self, level: int, index: int) -> Any:
        if level == len(self.lengths):
            return self.values[index].item()
        low, high = self._starts[level][index : index + 2]
        if level == len(self.lengths) - 1:
            return self.values[low:high].tolist()
        return [self._nested(level + 1, item) for item in range(low, high)]

    def select(self, indices: Sequence[int]) -> Column:
        """Keep some rows alone."""
        lengths, kept = list[Tensor](), torch.tensor(indices, dtype=torch.long)
        for level, starts in zip(self.lengths, self._starts, strict=True):
            lengths.append(level[kept])
            kept = ranges(starts, kept.tolist())
        return Column(self.values[kept], tuple(lengths), self.are_tensors)

    def problems(self, rows: int) -> list[str]:
        """Say what is wrong with a column that anybody may have written."""
        due = rows
        for number, lengths in enumerate(self.lengths):
            if lengths.dtype != torch.int32 or lengths.shape != (due,) or bool((lengths < 0).any()):
                return [f"lengths of level {number} are not {due} counts"]
            due = int(lengths.sum(dtype=torch.long))
        if self.values.shape != (due,):
            return [f"has {list(self.values.shape)} values, expected [{due}]"]
        return self._bad_values()

    def _bad_values(self) -> list[str]:
        if self.values.dtype not in (torch.bool, torch.uint8, torch.int32, torch.float32):
            return [f"is {self.values.dtype}, expected bool, uint8, int32 or float32"]
        if self.values.dtype.is_floating_point and not bool(self.values.isfinite().all()):
            return ["has NaN or infinite values"]
        if len(self.lengths) > 1 and self._padded() > max(_LARGEST, len(self.values)):
            return [f"has rows that take more than {_LARGEST} numbers when they are padded"]
        if self.are_tensors and not self._is_even():
            return ["holds tensors whose lists have different lengths"]
        return []

    def _padded(self) -> int:
        """How many numbers a row has that is as long as the longest at each level."""
        return prod(int(level.max()) if len(level) else 0 for level in self.lengths)

    def _is_even(self) -> bool:
        """Whether at each level all lists of a row have the same length."""
        bounds = torch.arange(len(self) + 1)
        for lengths in self.lengths:
            starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.long().cumsum(0)])
            owner = torch.repeat_interleave(torch.arange(len(self)), bounds.diff())
            first = lengths[bounds[:-1].clamp(max=max(len(lengths) - 1, 0))]
            if bool((lengths != first[owner]).any()):
                return False
            bounds = starts[bounds]
        return True


class Rows(Sequence[dict[str, Any]]):
    """Rows of columns.

    Args:
        columns: By name, all of as many rows.
    """

    def __init__(self, columns: Mapping[str, Column]) -> None:
        self.columns = dict(columns)

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Rows:
        """Keep some columns of rows.

        Args:
            rows: At least one.
            names: The columns that stay.

        Raises:
            ProbeError: A row lacks one, or it holds no numbers.
        """
        for number, row in enumerate(rows):
            if missing := [name for name in names if row.get(name) is None]:
                raise ProbeError(
                    f"example {number} has no '{missing[0]}', which others have; give examples "
                    "with the same columns"
                )
        return cls({name: Column.of(name, [row[name] for row in rows]) for name in names})

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return {name: column.row(index % len(self)) for name, column in self.columns.items()}


def _numbers(name: str, values: np.ndarray[Any, Any]) -> Tensor:
    if not values.size:
        return torch.zeros(0, dtype=torch.uint8)
    if values.dtype == bool:
        return torch.from_numpy(values)
    if values.dtype.kind in "iu":
        low, high = int(values.min()), int(values.max())
        if low < -_MOST or high > _MOST:
            raise ProbeError(f"column '{name}' has {low if low < 0 else high}, more than 31 bits")
        kind = np.uint8 if low >= 0 and high < 256 else np.int32
        return torch.from_numpy(values.astype(kind))
    if values.dtype.kind == "f" and bool(np.isfinite(narrow := values.astype(np.float32)).all()):
        return torch.from_numpy(narrow)
    raise ProbeError(
        f"column '{name}' holds something else than finite numbers; leave it out, or choose the "
        "inputs with `columns=`"
    )


def _widened(values: Tensor) -> Tensor:
    """Return integers as torch takes them for indices, and a copy of all else."""
    is_narrow = values.dtype in (torch.uint8, torch.int32)
    return values.long() if is_narrow else values.clone()


def ranges(starts: Sequence[int], indices: Sequence[int]) -> Tensor:
    """Return the places of all items of some lists, by where each list begins."""
    parts = [torch.arange(starts[i], starts[i + 1]) for i in indices]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)
