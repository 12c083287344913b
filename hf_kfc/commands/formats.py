"""How rows of a data set become what a model is fed with: a registry that plugins add to.

A plugin registers a format when it is imported, and names its module in the entry point group
``hf_kfc.plugins``::

    register_format(
        ExampleFormat("pairs of pictures", "a ViT with columns left and right", fits, prepare)
    )
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import datasets
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..curvature import default_forward, default_position_mask
from ..curvature.objective import Forward, PositionMask

__all__ = ["Choices", "ExampleFormat", "Prepared", "register_format", "registered_formats"]


class Choices(NamedTuple):
    """What the user says of a data set; None of what the format is to find out.

    Args:
        text_columns: The column of the text, or the two of a pair.
        label_column: The column of what is to be predicted.
        max_length: The most tokens of an example.
    """

    text_columns: Sequence[str] | None = None
    label_column: str | None = None
    max_length: int | None = None


class Prepared(NamedTuple):
    """Examples that a model can be run on; the fields are arguments of ``estimate``.

    Args:
        dataset: Examples by index.
        data_collator: Makes a batch of a list of them.
        forward: Runs the model on a batch.
        position_mask: Says which positions of a batch count.
    """

    dataset: datasets.Dataset
    data_collator: Callable[[list[Any]], Mapping[str, Tensor]]
    forward: Forward = default_forward
    position_mask: PositionMask = default_position_mask


@dataclass(frozen=True)
class ExampleFormat:
    """One kind of examples.

    Args:
        name: In a few words.
        needs: The models and columns that it is for, for people.
        fits: Whether it is the format for a model and the names of a data set's columns.
        prepare: Encodes the data set; raises a DataError that says which column is missing.
    """

    name: str
    needs: str
    fits: Callable[[PreTrainedModel, Sequence[str]], bool]
    prepare: Callable[
        [datasets.Dataset, PreTrainedModel, PreTrainedTokenizerBase, Choices], Prepared
    ]


_FORMATS: dict[str, ExampleFormat] = {}


def register_format(example_format: ExampleFormat) -> None:
    """Make a format known to the commands; it is asked before all that were known."""
    _FORMATS[example_format.name] = example_format


def registered_formats() -> tuple[ExampleFormat, ...]:
    """Return the formats of all plugins, the last registered first."""
    return tuple(reversed(_FORMATS.values()))
