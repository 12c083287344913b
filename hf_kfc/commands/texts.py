"""Examples of text: to classify, to classify token by token, and to go on with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import datasets
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto import modeling_auto

from ..errors import DataError
from ..text import printable
from .formats import Choices, ExampleFormat, Prepared

__all__ = ["TEXT_FORMATS"]

logger = logging.getLogger(__name__)

_PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question", "sentence"),
    ("question1", "question2"), ("text_a", "text_b"), ("text1", "text2"),
)  # fmt: skip
_TEXTS = ("text", "sentence")
_LABELS = ("label", "labels")
_TAGS = ("ner_tags", "tags", "labels", "label", "pos_tags")
_LARGE = 10**6
"""Tokenizers that know no limit say a number above this one."""

Rows = dict[str, list[Any]]
Encoder = Callable[[Rows], dict[str, Any]]


def _is_in(mapping: Mapping[str, Any]) -> Callable[[PreTrainedModel, Sequence[str]], bool]:
    """Make the test whether a model is one of an auto class."""
    names = {n for v in mapping.values() for n in ((v,) if isinstance(v, str) else v)}
    return lambda model, _: any(kind.__name__ in names for kind in type(model).__mro__)


def _classification(
    dataset: datasets.Dataset,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    choices: Choices,
) -> Prepared:
    _make_padding(model, tokenizer)
    collator = DataCollatorWithPadding(tokenizer)
    if _is_encoded(dataset):
        return Prepared(dataset, collator)
    label = _one_column(dataset, choices.label_column, _LABELS, "--label_column")
    columns = _text_columns(dataset, choices.text_columns, label)
    numbers = _label_numbers(dataset, label, model)

    def encode(rows: Rows) -> dict[str, Any]:
        _refuse_no_text(rows, columns)
        labels = [numbers(value) for value in rows[label]]
        return {**tokenizer(*(rows[column] for column in columns), **cut), "labels": labels}

    cut = _cut(model, tokenizer, choices)
    return Prepared(_encoded(dataset, encode, [*columns, label], cut), collator)


def _token_classification(
    dataset: datasets.Dataset,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    choices: Choices,
) -> Prepared:
    collator = DataCollatorForTokenClassification(tokenizer)
    if _is_encoded(dataset):
        return Prepared(dataset, collator)
    chosen = choices.text_columns[0] if choices.text_columns else None
    words = _one_column(dataset, chosen, ("tokens", "words"), "--text_columns")
    tags = _one_column(dataset, choices.label_column, _TAGS, "--label_column")
    numbers = _label_numbers(dataset, tags, model)

    def encode(rows: Rows) -> dict[str, Any]:
        found = tokenizer(rows[words], is_split_into_words=True, **cut)
        labels = []
        for row, values in enumerate(rows[tags]):
            if len(values) != len(rows[words][row]):
                raise DataError(
                    f"an example has {len(rows[words][row])} {words} but {len(values)} {tags}; "
                    "give each word one"
                )
            # The first piece of a word answers for it.
            of_word, last = [numbers(value) for value in values], None
            pieces = []
            for word in found.word_ids(row):
                pieces.append(-100 if word is None or word == last else of_word[word])
                last = word
            labels.append(pieces)
        return {**found, "labels": labels}

    cut = _cut(model, tokenizer, choices)
    return Prepared(_encoded(dataset, encode, [words, tags], cut), collator)


def _causal(
    dataset: datasets.Dataset,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    choices: Choices,
) -> Prepared:
    _make_padding(model, tokenizer)
    collator = DataCollatorForTokenClassification(tokenizer)  # pads labels with -100
    if _is_encoded(dataset):
        return Prepared(dataset, collator)
    columns = _text_columns(dataset, choices.text_columns, None)
    if len(columns) != 1:
        raise DataError(f"{len(columns)} text columns for a causal model; give one")

    def encode(rows: Rows) -> dict[str, Any]:
        _refuse_no_text(rows, columns)
        found = tokenizer(rows[columns[0]], **cut)
        return {**found, "labels": found["input_ids"]}

    cut = _cut(model, tokenizer, choices)
    return Prepared(_encoded(dataset, encode, columns, cut), collator)


TEXT_FORMATS = (
    ExampleFormat(
        "text classification",
        "a sequence classifier, one or two text columns and a label",
        _is_in(modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES),
        _classification,
    ),
    ExampleFormat(
        "token classification",
        "a token classifier, a column of words and one of their tags",
        _is_in(modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES),
        _token_classification,
    ),
    ExampleFormat(
        "text",
        "a causal language model and a text column",
        _is_in(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES),
        _causal,
    ),
)


def _is_encoded(dataset: datasets.Dataset) -> bool:
    return {"input_ids", "labels"} <= set(dataset.column_names)


def _one_column(
    dataset: datasets.Dataset, chosen: str | None, usual: Sequence[str], option: str
) -> str:
    """Return the chosen column, or the first of the usual names that there is."""
    names = dataset.column_names
    found = [name for name in ((chosen,) if chosen else usual) if name in names]
    if not found:
        wanted = f"column {chosen}" if chosen else f"column {' or '.join(usual)}"
        raise DataError(f"the data set has no {wanted}; give {option} one of {', '.join(names)}")
    return found[0]


def _text_columns(
    dataset: datasets.Dataset, chosen: Sequence[str] | None, label: str | None
) -> list[str]:
    """Return the chosen columns, or those that can only be meant."""
    names = dataset.column_names
    if chosen:
        return [_one_column(dataset, name, (), "--text_columns") for name in chosen]
    if pair := next((pair for pair in _PAIRS if set(pair) <= set(names)), None):
        return list(pair)
    if text := next((name for name in _TEXTS if name in names), None):
        return [text]
    strings = [
        name
        for name, feature in dataset.features.items()
        if name != label and getattr(feature, "dtype", None) in ("string", "large_string")
    ]
    if len(strings) != 1:
        raise DataError(
            f"which column is the text cannot be told; give --text_columns one of "
            f"{', '.join(strings or names)}, or two for pairs"
        )
    return strings


def _label_numbers(
    dataset: datasets.Dataset, column: str, model: PreTrainedModel
) -> Callable[[Any], Any]:
    """Make the function from a label of the data to the model's.

    Names decide where both have them, because their order may differ; numbers are taken as they
    are where the model's labels have no names, or others than the data's.
    """
    feature = dataset.features[column]
    feature = getattr(feature, "feature", feature)  # of a list
    label2id: dict[str, Any] = dict(model.config.label2id or {})
    known = {name.lower(): int(number) for name, number in label2id.items()}
    names = getattr(feature, "names", None)
    if names and {name.lower() for name in names} == known.keys():
        return lambda number: known[names[number].lower()] if number >= 0 else number
    if getattr(feature, "dtype", "string") not in ("string", "large_string"):
        return lambda number: int(number) if isinstance(number, bool) else number

    def of_name(name: Any) -> int:
        if str(name).lower() not in known:
            raise DataError(
                f"column {column} has the label '{printable(name, 80)}', which the model does not "
                f"know; it has {', '.join(label2id)}"
            )
        return known[str(name).lower()]

    return of_name


def _cut(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, choices: Choices
) -> dict[str, Any]:
    """Return the tokenizer's arguments for the most tokens that the model takes."""
    limits = [
        choices.max_length,
        tokenizer.model_max_length,
        getattr(model.config, "max_position_embeddings", None),
    ]
    known = [limit for limit in limits if limit and limit < _LARGE]
    return {"truncation": True, "max_length": min(known)} if known else {}


def _make_padding(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let examples of uneven length be one batch: what pads is masked, so any token will do."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def _refuse_no_text(rows: Rows, columns: Sequence[str]) -> None:
    for column in columns:
        if wrong := [value for value in rows[column] if not isinstance(value, str)]:
            raise DataError(
                f"column {column} holds {printable(repr(wrong[0]), 80)}, which is no text; remove "
                "such examples"
            )


def _encoded(
    dataset: datasets.Dataset, encode: Encoder, columns: Sequence[str], cut: Mapping[str, Any]
) -> datasets.Dataset:
    """Encode all examples, and say how many were cut."""
    used = dataset.select_columns(list(dict.fromkeys(columns)))
    found = used.map(encode, batched=True, remove_columns=used.column_names, desc="Encoding")
    if limit := cut.get("max_length"):
        full = sum(len(ids) == limit for ids in _ids(found))
        if full:
            logger.warning(
                "%d of %d examples fill %d tokens: longer ones are cut", full, len(found), limit
            )
    return found


def _ids(dataset: datasets.Dataset) -> Iterator[list[int]]:
    for rows in dataset.select_columns(["input_ids"]).iter(1000):
        yield from rows["input_ids"]
