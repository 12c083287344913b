"""From the name of a data set to what a model is fed with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
from datasets.arrow_writer import SchemaInferenceError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import DataError
from ..hub import split_revision
from .formats import Choices, Prepared, registered_formats
from .loading import loading
from .plugins import load_plugins
from .texts import TEXT_FORMATS

__all__ = ["load_examples", "prepare"]

_BUILDERS = {"csv": "csv", "json": "json", "jsonl": "json", "parquet": "parquet", "txt": "text"}
_OF_NOTHING = (
    "corresponds to no data",  # a table's header alone
    "No columns to parse from file",  # nor that, as pandas says
    "BatchSize must be greater than 0",  # of Parquet
)


def load_examples(
    name: str, config: str | None = None, split: str | None = None
) -> datasets.Dataset:
    """Load a split of a data set.

    Args:
        name: A folder that ``save_to_disk`` made, a folder or file of CSV, JSON lines, Parquet or
            text, ``org/name`` or ``org/name@revision``.
        config: Name of one of its configurations.
        split: The split; by default the only one.

    Raises:
        DataError: It cannot be loaded, is empty, or has no such split.
    """
    advice = "a folder that save_to_disk made, files of examples, or a data set of the Hub"
    with loading(f"data set '{name}'", advice, DataError):
        try:
            found = _found(name, config, split)
        except Exception as error:
            if not _is_of_nothing(error):
                raise
            raise _empty(name) from error
    if isinstance(found, datasets.DatasetDict):
        splits = list(found)
        chosen = split or (splits[0] if len(splits) == 1 else None)
        if chosen not in splits:
            held, place = (f"no split '{split}'", "") if split else ("several splits", f"{name}/")
            known = ", ".join(place + one for one in splits)
            raise DataError(f"{name} holds {held}; give one of {known}")
        found = found[chosen]
    if not len(found):
        raise _empty(name)
    examples: datasets.Dataset = found
    return examples


def _found(name: str, config: str | None, split: str | None) -> Any:
    path, revision = split_revision(name)
    local = Path(path)
    if any((local / f).is_file() for f in ("dataset_info.json", "dataset_dict.json")):
        return datasets.load_from_disk(path)
    if (suffix := local.suffix[1:]) in _BUILDERS and local.is_file():
        return datasets.load_dataset(_BUILDERS[suffix], data_files=path)
    return datasets.load_dataset(path, config, split=split, revision=revision)


def _is_of_nothing(error: Exception) -> bool:
    """Whether a file holds no row, of which each reader of `datasets` makes an error of its own."""
    cause = error.__cause__ or error
    said = any(words in str(cause) for words in _OF_NOTHING)
    return said or isinstance(cause, StopIteration | SchemaInferenceError)


def _empty(name: str) -> DataError:
    return DataError(f"{name} holds no example; give files, or a --split, with some")


def prepare(
    dataset: datasets.Dataset,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    choices: Choices,
) -> Prepared:
    """Encode examples in the format that is theirs; plugins are asked before the library's own."""
    failures = load_plugins()
    formats = (*registered_formats(), *TEXT_FORMATS)
    columns = dataset.column_names
    if found := next((one for one in formats if one.fits(model, columns)), None):
        return found.prepare(dataset, model, tokenizer, choices)
    known = "; ".join([*(f"{one.name}: {one.needs}" for one in formats), *failures])
    raise DataError(
        f"{type(model).__name__} with columns {', '.join(columns)} is of no format that is known "
        f"({known}); give such a model and data set, or estimate in Python with your own collator"
    )
