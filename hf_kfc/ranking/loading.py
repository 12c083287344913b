"""What a script loads: ranking examples from wherever they are, and a ranker with its tokenizer."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import datasets
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HfHubHTTPError
from transformers import (
    AutoModelForMultipleChoice,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from ..commands.loading import load_config, loading
from ..errors import DataError, HfKfcError
from ..hub import pin, split_revision, walk_tiers
from .checks import check_examples
from .cnn import CnnConfig, CnnForMultipleChoice
from .corpora.config import SPLITS
from .encoding import encode_candidates, train_tokenizer
from .tasks import TASKS, prepare_task

__all__ = [
    "DataArguments",
    "OldDataArguments",
    "dataset_name",
    "encode_splits",
    "find_sources",
    "load_examples",
    "load_pretrained",
    "new_cnn",
]

logger = logging.getLogger(__name__)

_COLUMNS = ("id", "left", "mention", "right", "candidate_ids", "candidate_names", "label")
_NEITHER = (
    "{dataset!r} is no folder, no task ({tasks}) and no data set on the Hub (org/name); correct "
    "--dataset"
)


@dataclass
class DataArguments:
    """Which examples a script learns, under which name, and how many of them."""

    dataset: str = field(
        metadata={
            "help": "A folder that recipes/prepare.py or DatasetDict.save_to_disk made, a data set "
            "on the Hub as ORG/NAME or ORG/NAME@REVISION, or the name of a built-in task: "
            f"{', '.join(TASKS)}."
        },
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Which of the data set's configurations, if it has many."}
    )
    name: str | None = field(
        default=None,
        metadata={
            "help": "What tables, cards and the prior call the data set (default: its "
            "configuration's name, or its own)."
        },
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder with the files of the built-in tasks."}
    )
    max_train_examples: int | None = field(
        default=None, metadata={"help": "At most so many examples to learn, drawn at random."}
    )
    max_validation_examples: int | None = field(
        default=None, metadata={"help": "At most so many examples to choose strengths on."}
    )
    max_test_examples: int | None = field(
        default=None, metadata={"help": "At most so many examples to report the accuracy on."}
    )
    max_length: int = field(
        default=96, metadata={"help": "The most tokens of text and candidate name together."}
    )

    def __post_init__(self) -> None:
        self.name = self.name or dataset_name(self.dataset, self.dataset_config)
        for split, limit in self.max_examples.items():
            if limit < 1:
                raise DataError(f"max_{split}_examples is {limit}; give at least 1")

    @property
    def max_examples(self) -> dict[str, int]:
        """The limits by split, as :func:`load_examples` takes them."""
        limits = {split: getattr(self, f"max_{split}_examples") for split in SPLITS}
        return {split: limit for split, limit in limits.items() if limit is not None}


@dataclass
class OldDataArguments:
    """On which old data sets a script measures what is forgotten, where they are at hand."""

    old_datasets: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Old data sets to measure forgetting on, as --dataset takes them, a "
            "configuration after a colon as in ORG/NAME:CONFIG (default: none; what is forgotten "
            "then is not known)."
        },
    )
    old_names: list[str] = field(
        default_factory=list,
        metadata={"help": "What tables call them, one for each (default: their own names)."},
    )

    def __post_init__(self) -> None:
        self.old_names = self.old_names or [dataset_name(own) for own in self.old_datasets]
        if len(self.old_names) != len(self.old_datasets):
            raise DataError(
                f"{len(self.old_names)} names are given for {len(self.old_datasets)} old data "
                "sets; give as many --old_names as --old_datasets"
            )
        if len(set(self.old_names)) < len(self.old_names):
            raise DataError(
                f"old data sets are called {', '.join(self.old_names)}; give different --old_names"
            )


def dataset_name(dataset: str | Path, config: str | None = None) -> str:
    """Return what a data set is called where nobody names it: its configuration, or its last part.

    Args:
        dataset: As :func:`load_examples` takes it.
        config: Its configuration.

    Example:
        >>> dataset_name("prepared/mine"), dataset_name("org/ranking@v1:psytar")
        ('mine', 'psytar')
    """
    place, own = split_config(dataset)
    return config or own or Path(split_revision(place)[0]).resolve().name


def load_examples(
    dataset: str | Path,
    config: str | None = None,
    *,
    data_dir: str | Path | None = None,
    max_examples: Mapping[str, int] | None = None,
    seed: int = 0,
) -> datasets.DatasetDict:
    """Load ranking examples and make sure that they can be learnt.

    Args:
        dataset: A folder (of :func:`~hf_kfc.ranking.push_dataset.save_dataset`, of
            ``DatasetDict.save_to_disk``, or any that ``datasets.load_dataset`` reads), a data set
            on the Hub as ``"org/name"`` or ``"org/name@revision"``, or a key of
            :data:`~hf_kfc.ranking.tasks.TASKS`. What is a folder is taken for one.
        config: Which of its configurations, where a folder or a data set on the Hub has several;
            it may also stand after the name and a colon.
        data_dir: Folder with the files of a built-in task.
        max_examples: The most examples of a split; the others are left out at random, and the
            order stays.
        seed: Of that draw; of a built-in task also of the order of the candidates.

    Returns:
        The splits ``train``, ``validation`` and ``test``, with the columns of
        :data:`~hf_kfc.ranking.schema.FEATURES` that a ranker needs, and others if there are any.

    Raises:
        DataError: There is no such data set, it cannot be read, a split or a column is missing, or
            an example cannot be ranked; it says which and what to do.

    Example:
        >>> examples = load_examples("prepared/mine")  # doctest: +SKIP
        >>> psytar = load_examples("org/ranking@main:psytar")  # doctest: +SKIP
        >>> bc5cdr = load_examples("bc5cdr", data_dir="data")  # doctest: +SKIP
    """
    name, limits = dataset_name(dataset, config), dict(max_examples or {})
    dataset, own_config = split_config(dataset)
    if not Path(dataset).exists() and str(dataset) in TASKS:
        builder = prepare_task(str(dataset), data_dir=data_dir, max_examples=limits, seed=seed)
        splits = builder.as_dataset()
    else:
        splits = _read(dataset, config or own_config)
    for split in SPLITS:
        if split not in splits:
            found = ", ".join(splits) or "none"
            raise DataError(f"{name}: split {split!r} is missing (found: {found}); add it")
        missing = [column for column in _COLUMNS if column not in splits[split].column_names]
        if missing:
            raise DataError(
                f"{name}/{split}: no column {', '.join(map(repr, missing))}; make the data set "
                "with recipes/prepare.py, or with the columns of hf_kfc.ranking.FEATURES"
            )
        limit, count = limits.get(split), len(splits[split])
        if limit is not None and limit < count:
            drawn = random.Random(f"{seed}:{split}").sample(range(count), limit)
            splits[split] = splits[split].select(sorted(drawn))
        try:
            check_examples(splits[split])
        except DataError as error:
            raise DataError(f"{name}/{split}: {error}") from None
    return datasets.DatasetDict({split: splits[split] for split in SPLITS})


def split_config(dataset: str | Path) -> tuple[str, str | None]:
    """Split ``"org/name@revision:config"``; what is there under the whole name stays whole."""
    name, colon, config = str(dataset).rpartition(":")
    is_split = colon and "/" not in config and not Path(dataset).exists()
    return (name, config) if is_split else (str(dataset), None)


def _read(dataset: str | Path, config: str | None) -> datasets.DatasetDict:
    path, (repo_id, revision) = Path(dataset), split_revision(str(dataset))
    if not path.exists() and repo_id.count("/") != 1:
        raise DataError(_NEITHER.format(dataset=str(dataset), tasks=", ".join(TASKS)))
    try:
        if (path / "dataset_dict.json").is_file():
            return datasets.load_from_disk(str(path))
        if (path / "state.json").is_file():
            raise DataError(f"{path} is a single split; save a DatasetDict of {', '.join(SPLITS)}")
        return datasets.load_dataset(repo_id, config, revision=revision)
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, DatasetsError, HfHubHTTPError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise DataError(
            f"data set {str(dataset)!r} cannot be loaded ({reason}); check its name, its "
            "configuration and its files"
        ) from error


def encode_splits(
    splits: Mapping[str, datasets.Dataset], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, list[dict[str, Any]]]:
    """Encode all splits by :func:`~hf_kfc.ranking.encode_candidates`, in memory.

    Reading them from the disk in every epoch would cost as much as a small CNN.

    Args:
        splits: Of :func:`load_examples`.
        tokenizer: Of the ranker.
        max_length: The most tokens of text and candidate name together.

    Raises:
        DataError: The tokenizer marks no pairs, or a length leaves no room.
    """
    return {
        split: encode_candidates(rows, tokenizer, max_length).to_list()
        for split, rows in splits.items()
    }


def new_cnn(
    examples: datasets.Dataset, *, hidden_size: int = 128, vocab_size: int = 8000, seed: int = 0
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Make a small CNN that has learnt nothing yet, with a vocabulary of its own.

    Args:
        examples: Ranking examples whose words give the vocabulary.
        hidden_size: Width of the CNN.
        vocab_size: The size at which the vocabulary is done.
        seed: Of the weights.

    Returns:
        The model and its tokenizer.

    Raises:
        DataError: A size is below 1.
    """
    for key, size in (("hidden_size", hidden_size), ("vocab_size", vocab_size)):
        if size < 1:
            raise DataError(f"{key} is {size}; give at least 1")
    tokenizer = train_tokenizer(itertools.chain.from_iterable(map(_texts, examples)), vocab_size)
    set_seed(seed)
    config = CnnConfig(vocab_size=len(tokenizer), hidden_size=hidden_size)
    return CnnForMultipleChoice(config), tokenizer


def _texts(example: Mapping[str, Any]) -> Iterator[str]:
    yield " ".join((example["left"], example["mention"], example["right"]))
    yield from example["candidate_names"]


def load_pretrained(
    model: str | Path,
    *,
    num_layers: int | None = None,
    seed: int = 0,
    learnt: bool = False,
    token: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a ranker, or an encoder that gets a new head, with its tokenizer.

    The model is in evaluation mode and in float32 whatever it was saved in: small steps are lost on
    weights of 16 bits. For 16-bit arithmetic set ``bf16`` in the training arguments.

    An encoder's dropouts are 0 from then on. As long as the head is new, little tells the
    candidates of a mention apart, and noise of each one's own hides it: three layers of MiniLM need
    three times the steps with 0.1. A ranker keeps its own.

    Args:
        model: A folder, ``"org/name"`` or ``"org/name@revision"``.
        num_layers: Keep only the first layers, this many; by default all.
        seed: Of a new head.
        learnt: Whether to refuse an encoder, whose new head has learnt nothing.
        token: Access token; by default the one logged in with.

    Raises:
        HfKfcError: The model or its tokenizer is missing, damaged or out of reach, has no such
            number of layers, or has a part that has learnt nothing.

    Example:
        >>> model, tokenizer = load_pretrained("runs/tier1")  # doctest: +SKIP
    """
    path, revision = split_revision(str(model))
    place: dict[str, Any] = {"revision": revision, "token": token, "trust_remote_code": False}
    set_seed(seed)
    where = "the folder of a model with its tokenizer, or the name of a Hub repository"
    with loading(f"model '{model}'", where, HfKfcError):
        config = load_config(str(model), token)  # first: a tokenizer reads it too, unchecked
        if learnt:
            _refuse_classifier(config, str(model))
        tokenizer = AutoTokenizer.from_pretrained(path, **place)
        if num_layers is not None:
            _keep_layers(config, num_layers)
        if "ForMultipleChoice" not in str(config.architectures):
            _remove_dropout(config)
        ranker, info = AutoModelForMultipleChoice.from_pretrained(
            path, config=config, dtype=torch.float32, output_loading_info=True, **place
        )
    if learnt and info["missing_keys"]:
        raise HfKfcError(
            f"model '{model}' is no ranker: it has no {', '.join(sorted(info['missing_keys']))}; "
            "train it to rank first"
        )
    return ranker, tokenizer


def _refuse_classifier(config: PreTrainedConfig, name: str) -> None:
    """Refuse a head of several labels before its shape does; one of a single score may rank."""
    architecture = (config.architectures or [""])[0]
    if architecture.endswith("Classification") and config.num_labels != 1:
        raise HfKfcError(
            f"model '{name}' is no ranker but a {architecture} of {config.num_labels} labels; "
            "train one to rank first"
        )


def _keep_layers(config: PreTrainedConfig, num_layers: int) -> None:
    available = getattr(config, "num_hidden_layers", 0)
    if not 1 <= num_layers <= available:
        raise HfKfcError(
            f"num_layers is {num_layers}, and the {config.model_type} model has {available}; give "
            "1 to as many, or none"
        )
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:num_layers]


def _remove_dropout(config: PreTrainedConfig) -> None:
    values = config.to_dict()
    names = [n for n, v in values.items() if "dropout" in n and isinstance(v, float) and v]
    for name in names:
        setattr(config, name, 0.0)
    if names:
        logger.info("the encoder's head is new, so %s are 0", ", ".join(names))


def find_sources(model: str, priors: Sequence[str] = ()) -> tuple[str, list[str]]:
    """Find out which commits a model and the priors of its tiers are at now.

    Args:
        model: A folder, ``"org/name"`` or ``"org/name@revision"``.
        priors: Likewise; none for those that the model's card leads back to, from the first tier
            to the last.

    Returns:
        The model and the priors, each as ``"org/name@sha"`` or a folder; the same in all processes.

    Raises:
        HfKfcError: A card cannot be read, or there are no priors and the model is a folder.
    """
    # One process looks: a commit made meanwhile would be another model to the rest.
    outcome: list[Any] = [None]
    if PartialState().is_main_process:
        try:
            outcome = [_find_sources(model, priors)]
        except HfKfcError as error:
            outcome = [error]
    (found,) = broadcast_object_list(outcome)
    if isinstance(found, HfKfcError):
        raise found
    return cast("tuple[str, list[str]]", found)


def _find_sources(model: str, priors: Sequence[str]) -> tuple[str, list[str]]:
    if not priors and Path(model).exists():
        raise HfKfcError(
            f"model {model} is a folder, from which no card leads to its priors; give --priors"
        )
    model = pin(model)
    return model, [pin(p) for p in priors] or [tier.prior for tier in walk_tiers(model)][::-1]
