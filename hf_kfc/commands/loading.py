"""Models, tokenizers and data sets by folder, or by name on the Hub; nothing of theirs is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from datasets.exceptions import DatasetsError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import ConsolidationError, DataError
from ..hub import split_revision
from .plugins import load_plugins

__all__ = ["load_examples", "load_model", "load_tokenizer", "register_model"]

_FAILURES = (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError)
"""What the loaders raise for files that are missing, damaged or not theirs."""
_BUILDERS = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".txt": "text",
}
_MODELS: dict[str, type[PreTrainedModel]] = {}


def register_model(kind: type[PreTrainedModel]) -> None:
    """Make a class of models known to the commands that transformers does not have.

    Args:
        kind: The class; its configuration is known to ``AutoConfig``.
    """
    _MODELS[kind.__name__] = kind


def load_model(name: str, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Load a model as the class that saved it.

    Args:
        name: A folder, ``org/name`` or ``org/name@revision``.
        dtype: Of its parameters; by default as they were saved.

    Raises:
        ConsolidationError: It is missing or damaged, some of its weights are, or its class is in
            neither transformers nor a plugin.
    """
    failures = load_plugins()
    path, revision = split_revision(name)
    safe: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(path, **safe)
        kind = _class_of(name, (config.architectures or ["none"])[0], failures)
        if dtype is not None:
            safe["dtype"] = dtype
        found: Any = kind.from_pretrained(
            path, config=config, use_safetensors=True, output_loading_info=True, **safe
        )
    except ConsolidationError:
        raise
    except (*_FAILURES, SafetensorError) as error:
        raise ConsolidationError(
            f"model '{name}' cannot be loaded ({_reason(error, failures)}); give the folder that "
            "save_pretrained made, or the name of a Hub repository"
        ) from None
    model: PreTrainedModel = found[0]
    if missing := found[1]["missing_keys"]:
        raise ConsolidationError(
            f"model '{name}' has no weights for {', '.join(sorted(missing))}; save it whole"
        )
    return model


def _class_of(name: str, architecture: str, failures: tuple[str, ...]) -> type[PreTrainedModel]:
    kind = _MODELS.get(architecture) or getattr(transformers, architecture, None)
    if isinstance(kind, type) and issubclass(kind, PreTrainedModel):
        return kind
    raise ConsolidationError(
        f"model '{name}' is of class '{architecture}', which transformers does not have; give a "
        "model of a class that it has" + "".join(f"; {failure}" for failure in failures)
    )


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer.

    Args:
        name: A folder, ``org/name`` or ``org/name@revision``.

    Raises:
        ConsolidationError: There is none, or it is damaged.
    """
    load_plugins()  # a tokenizer's class is found by the model's configuration
    path, revision = split_revision(name)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, revision=revision, trust_remote_code=False
        )
    except _FAILURES as error:
        raise ConsolidationError(
            f"the tokenizer of '{name}' cannot be loaded ({_reason(error)}); give a folder or "
            "repository that has one"
        ) from None
    return tokenizer


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
    path, revision = split_revision(name)
    local = Path(path)
    try:
        if any((local / f).is_file() for f in ("dataset_info.json", "dataset_dict.json")):
            found: Any = datasets.load_from_disk(path)
        elif builder := _BUILDERS.get(local.suffix) if local.is_file() else None:
            found = datasets.load_dataset(builder, data_files=path)
        else:
            found = datasets.load_dataset(path, config, split=split, revision=revision)
    except (*_FAILURES, DatasetsError) as error:
        raise DataError(
            f"{name} holds no examples ({_reason(error)}); give a folder that save_to_disk made, "
            "files of examples, or a data set of the Hub"
        ) from None
    if isinstance(found, datasets.DatasetDict):
        splits = list(found)
        if split is None and len(splits) > 1:
            raise DataError(
                f"{name} holds several splits; give one of "
                + ", ".join(f"{name}/{one}" for one in splits)
            )
        if split is not None and split not in splits:
            raise DataError(f"{name} has no split '{split}'; give one of {', '.join(splits)}")
        found = found[split or splits[0]]
    if not len(found):
        raise DataError(f"{name} has no examples; give a split that has some")
    examples: datasets.Dataset = found
    return examples


def _reason(error: Exception, failures: tuple[str, ...] = ()) -> str:
    said = str(error).strip() or type(error).__name__
    return "; ".join([said, *failures])
