"""From a data set to what a model is fed with."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import DataError
from .formats import Choices, ExampleFormat, Prepared, registered_formats
from .plugins import load_plugins
from .texts import TEXT_FORMATS

__all__ = ["find_format", "prepare"]


def find_format(model: PreTrainedModel, columns: Sequence[str]) -> ExampleFormat:
    """Find the format of examples; those of plugins are asked before the library's own.

    Args:
        model: What they are for.
        columns: Names of their columns.

    Raises:
        DataError: None fits; those that are known are listed.
    """
    failures = load_plugins()
    formats = (*registered_formats(), *TEXT_FORMATS)
    if found := next((one for one in formats if one.fits(model, columns)), None):
        return found
    known = "; ".join([*(f"{one.name}: {one.needs}" for one in formats), *failures])
    raise DataError(
        f"{type(model).__name__} with columns {', '.join(columns)} is of no format that is known "
        f"({known}); give such a model and data set, or estimate in Python with your own collator"
    )


def prepare(
    dataset: datasets.Dataset,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    choices: Choices,
) -> Prepared:
    """Encode examples in the format that is theirs.

    Args:
        dataset: The examples.
        model: What they are for.
        tokenizer: Its tokenizer.
        choices: What the user says of them.

    Raises:
        DataError: No format fits, a column is missing, or an example is not of its format.
    """
    return find_format(model, dataset.column_names).prepare(dataset, model, tokenizer, choices)
