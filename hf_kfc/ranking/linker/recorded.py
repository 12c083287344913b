"""How a ranker's examples were made, said in its configuration, so that a linker need not be told.

It stands in ``config.json``, which every way of saving and publishing a model takes along.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError
from transformers import PreTrainedModel

from ...errors import DataError
from ...hub import hub_errors_as, split_revision
from ..corpora.builder import COUNTS_FILE
from ..corpora.counts import Counts
from ..loading import DataArguments, split_config
from ..tasks import TASKS, prepare_task
from .settings import LinkerSettings

__all__ = ["record_settings", "recorded_settings"]

_KEY = "linker"
_COUNTED = ("retrieval", "num_candidates", "context_words", "show_types")


def record_settings(
    model: PreTrainedModel, data: DataArguments, examples: datasets.Dataset, seed: int = 0
) -> None:
    """Write into a ranker's configuration how its candidates are found and shown.

    Args:
        model: The ranker; its ``config`` is changed.
        data: Which data set it learns.
        examples: Its examples, as :func:`~hf_kfc.ranking.load_examples` gave them. Where nothing
            tells how they were made, what a linker does by default is written.
        seed: As :func:`~hf_kfc.ranking.load_examples` took it.

    Raises:
        HfKfcError: What a data set says of itself is malformed or out of reach.
    """
    counts = _counts(data, examples, seed)
    values = {} if counts is None else {name: getattr(counts, name) for name in _COUNTED}
    settings = asdict(LinkerSettings.of(values | {"max_length": data.max_length}))
    setattr(model.config, _KEY, {name: settings[name] for name in (*_COUNTED, "max_length")})


def recorded_settings(model: PreTrainedModel, place: str) -> LinkerSettings:
    """Read what :func:`record_settings` wrote; what a linker does by default, if nothing.

    Args:
        model: A ranker, which anybody may have written.
        place: Where it is from, for messages.

    Raises:
        DataError: It is something else.
    """
    recorded: Any = getattr(model.config, _KEY, {})
    try:
        if not isinstance(recorded, dict):
            raise DataError("it is no object")
        return LinkerSettings.of(recorded)
    except DataError as error:
        raise DataError(
            f"{_KEY!r} in config.json of {place}: {error}; correct or remove it"
        ) from error


def _counts(data: DataArguments, examples: datasets.Dataset, seed: int) -> Counts | None:
    """Find what was counted when examples were made, if anybody did."""
    dataset, config = split_config(data.dataset)
    if not Path(dataset).exists() and dataset in TASKS:
        limits = data.max_examples
        return prepare_task(dataset, data_dir=data.data_dir, max_examples=limits, seed=seed).counts
    place = f"{data.dataset_config or config or examples.info.config_name}/{COUNTS_FILE}"
    if Path(dataset).exists():
        path = Path(dataset) / place
        return Counts.load(path) if path.is_file() else None
    repo_id, revision = split_revision(dataset)
    with hub_errors_as(f"{COUNTS_FILE} of {dataset} cannot be fetched ({{reason}}); try again"):
        try:
            fetched = HfApi(library_name="hf_kfc").hf_hub_download(
                repo_id, place, repo_type="dataset", revision=revision
            )
        except EntryNotFoundError:
            return None
    return Counts.load(fetched)
