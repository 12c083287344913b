"""Examples of text: to classify, whole or word by word, to go on with, and to answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import datasets
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto import modeling_auto

from ..errors import DataError
from ..text import printable
from .formats import Choices, ExampleFormat, Prepared

__all__ = ["TEXT_FORMATS", "token_limit"]

logger = logging.getLogger(__name__)

_PAIRS = (
    ("sentence1", "sentence2"), ("premise", "hypothesis"), ("question", "sentence"),
    ("question1", "question2"), ("text_a", "text_b"), ("text1", "text2"),
)  # fmt: skip
_STRINGS = ("string", "large_string")
_NO_LIMIT = 10**6
"""Tokenizers that know no limit say a number above this one."""

Rows = Mapping[str, list[Any]]
Encoding = tuple[list[str], Callable[[Rows], dict[str, Any]]]
"""The columns that are read, and what makes a batch of encoded rows of them."""


class _Source(NamedTuple):
    """Rows to encode for a model.

    What encodes them holds none of it but ``tokenize``: ``map`` hashes all that a function holds.
    """

    dataset: datasets.Dataset
    model: PreTrainedModel
    tokenize: Callable[..., Any]
    choices: Choices


def _classification(data: _Source) -> Encoding:
    label = _label_column(data, ("label", "labels"))
    texts = _text_columns(data, label)
    several = data.model.config.problem_type == "multi_label_classification"
    several = several or hasattr(data.dataset.features[label], "feature")
    number = (_several_numbers if several else _label_numbers)(data, label)
    tokenize = data.tokenize

    def encode(rows: Rows) -> dict[str, Any]:
        found = tokenize(*(_strings(rows, name) for name in texts))
        return {**found, "labels": [number(value) for value in rows[label]]}

    return [*texts, label], encode


def _token_classification(data: _Source) -> Encoding:
    chosen = data.choices.text_columns[0] if data.choices.text_columns else None
    words = _column(data.dataset, chosen, ("tokens", "words"), "--text_columns")
    tags = _label_column(data, ("ner_tags", "tags", "labels", "label", "pos_tags"))
    number = _label_numbers(data, tags)
    tokenize = data.tokenize

    def encode(rows: Rows) -> dict[str, Any]:
        found = tokenize(rows[words], is_split_into_words=True)
        labels = []
        for row, values in enumerate(rows[tags]):
            if len(values) != (count := len(rows[words][row])):
                raise DataError(f"an example has {count} {words} but {len(values)} {tags}")
            of_words = [number(value) for value in values]
            pieces = pairwise([None, *found.word_ids(row)])
            labels.append(  # the first piece of a word answers for it
                [-100 if word in (None, before) else of_words[word] for before, word in pieces]
            )
        return {**found, "labels": labels}

    return [words, tags], encode


def _causal(data: _Source) -> Encoding:
    texts = _text_columns(data, None)
    if len(texts) != 1:
        raise DataError(f"a causal model reads one text, not {len(texts)}; give one --text_columns")
    tokenize = data.tokenize

    def encode(rows: Rows) -> dict[str, Any]:
        found = tokenize(_strings(rows, texts[0]))
        return {**found, "labels": found["input_ids"]}

    return texts, encode


def _text_to_text(data: _Source) -> Encoding:
    target = _label_column(data, ("target", "summary"))
    texts = _text_columns(data, target)
    tokenize = data.tokenize

    def encode(rows: Rows) -> dict[str, Any]:
        found = tokenize(*(_strings(rows, name) for name in texts))
        return {**found, "labels": tokenize(text_target=_strings(rows, target))["input_ids"]}

    return [*texts, target], encode


def _text_format(
    name: str,
    needs: str,
    models: Mapping[str, Any],
    collator: Any,
    make: Callable[[_Source], Encoding],
) -> ExampleFormat:
    """Make a format of what its rows become; encoded examples are taken as they are."""
    classes = {n for v in models.values() for n in ((v,) if isinstance(v, str) else v)}

    def fits(model: PreTrainedModel, columns: Sequence[str]) -> bool:
        return any(kind.__name__ in classes for kind in type(model).__mro__)

    def prepare(
        dataset: datasets.Dataset,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        choices: Choices,
    ) -> Prepared:
        # Examples of uneven length are one batch: what pads is masked, so any token will do.
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.unk_token
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.pad_token_id
        if not {"input_ids", "labels"} <= set(dataset.column_names):
            limit = token_limit(model, tokenizer, choices.max_length)

            def tokenize(*texts: Any, **options: Any) -> Any:
                return tokenizer(*texts, truncation=bool(limit), max_length=limit, **options)

            dataset = _encoded(dataset, *make(_Source(dataset, model, tokenize, choices)), limit)
        return Prepared(dataset, collator(tokenizer))

    return ExampleFormat(name, needs, fits, prepare)


TEXT_FORMATS = (
    _text_format(
        "text classification",
        "a sequence classifier, one or two text columns and a label",
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        DataCollatorWithPadding,
        _classification,
    ),
    _text_format(
        "token classification",
        "a token classifier, a column of words and one of their tags",
        modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
        DataCollatorForTokenClassification,
        _token_classification,
    ),
    _text_format(
        "text",
        "a causal language model and a text column",
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        DataCollatorForTokenClassification,  # pads labels with -100
        _causal,
    ),
    _text_format(
        "text to text",
        "an encoder-decoder, a text column and the text that is to come of it",
        modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        DataCollatorForSeq2Seq,
        _text_to_text,
    ),
)


def _column(
    dataset: datasets.Dataset, chosen: str | None, usual: Sequence[str], option: str
) -> str:
    """Return the chosen column, or the first of the usual names that there is."""
    names = dataset.column_names
    wanted = (chosen,) if chosen else usual
    if found := next((name for name in wanted if name in names), None):
        return found
    raise DataError(
        f"the data set has no column {' or '.join(wanted)}; give {option} one of {', '.join(names)}"
    )


def _label_column(data: _Source, usual: Sequence[str]) -> str:
    return _column(data.dataset, data.choices.label_column, usual, "--label_column")


def _text_columns(data: _Source, label: str | None) -> list[str]:
    """Return the chosen columns, or those that can only be meant."""
    names = data.dataset.column_names
    if chosen := data.choices.text_columns:
        return [_column(data.dataset, name, (), "--text_columns") for name in chosen]
    for usual in (*_PAIRS, ("text",), ("sentence",)):
        if set(usual) <= set(names):
            return list(usual)
    kinds = {name: getattr(kind, "dtype", None) for name, kind in data.dataset.features.items()}
    strings = [name for name in names if name != label and kinds[name] in _STRINGS]
    if len(strings) == 1:
        return strings
    raise DataError(
        "which column is the text cannot be told; give --text_columns one of "
        f"{', '.join(strings or names)}, or two for pairs"
    )


def _label_numbers(data: _Source, column: str) -> Callable[[Any], Any]:
    """Make the function from a label of the data to the model's number for it.

    Names decide where both have them, because their order may differ; numbers are taken as they
    are where the model's labels have no names, or others than the data's.
    """
    number = _numbering(data, column)

    def of_label(label: Any) -> Any:
        if label is None or label != label:  # noqa: PLR0124 - NaN, of a table with gaps
            raise DataError(f"column {column} has no label in some examples; remove them")
        return number(label)

    return of_label


def _numbering(data: _Source, column: str) -> Callable[[Any], Any]:
    feature = data.dataset.features[column]
    feature = getattr(feature, "feature", feature)  # of a list
    label2id: dict[str, Any] = dict(data.model.config.label2id or {})
    known = {name.lower(): int(number) for name, number in label2id.items()}
    names = getattr(feature, "names", None)
    if names and {name.lower() for name in names} == known.keys():
        return lambda label: known[names[label].lower()] if label >= 0 else label
    if getattr(feature, "dtype", "string") not in _STRINGS:
        return partial(_class, column) if _has_classes(data.model) else _number

    def of_name(label: Any) -> int:
        if str(label).lower() not in known:
            raise DataError(
                f"column {column} has the label '{printable(label, 80)}', which the model does not "
                f"know; it has {', '.join(label2id)}"
            )
        return known[str(label).lower()]

    return of_name


def _several_numbers(data: _Source, column: str) -> Callable[[Any], list[float]]:
    """Make the function from an example's labels to as many floats as the model has scores."""
    count = data.model.config.num_labels
    if data.model.config.problem_type == "single_label_classification":
        raise DataError(
            f"column {column} holds lists, and the model has one class for each example; give "
            "--label_column another one"
        )
    # Of classes the numbers say which of them are given, and not whether each is.
    of_classes = hasattr(getattr(data.dataset.features[column], "feature", None), "names")

    def of_labels(labels: Any) -> list[float]:
        numbers = labels if isinstance(labels, list) and not of_classes else []
        if len(numbers) != count or any(x is None or x != x for x in numbers):  # noqa: PLR0124
            raise DataError(
                f"column {column} holds {printable(repr(labels), 80)}, and the model needs a list "
                f"of {count} numbers there, one for each of its labels"
            )
        return [float(number) for number in numbers]

    return of_labels


def _has_classes(model: PreTrainedModel) -> bool:
    """Whether labels are numbers of classes, and not numbers to predict."""
    problem = model.config.problem_type
    several = problem is None and (model.config.num_labels or 0) > 1
    return problem == "single_label_classification" or several


def _number(label: Any) -> Any:
    return int(label) if isinstance(label, bool) else label


def _class(column: str, label: Any) -> int:
    """Return the number of a class; a table with gaps has whole numbers as floats."""
    if not float(label).is_integer():
        raise DataError(
            f"column {column} has the label {label}, which is no class; number the classes from 0"
        )
    return int(label)


def token_limit(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, most: int | None
) -> int | None:
    """Return the most tokens of an example: what is asked for and what the model takes."""
    positions = getattr(model.config, "max_position_embeddings", None)
    limits = (most, tokenizer.model_max_length, positions)
    return min((limit for limit in limits if limit and limit < _NO_LIMIT), default=None)


def _strings(rows: Rows, column: str) -> list[str]:
    if wrong := [value for value in rows[column] if not isinstance(value, str)]:
        advice = "remove such examples"
        if isinstance(wrong[0], list | dict):  # a conversation
            advice = "make one, of conversations by tokenizer.apply_chat_template(tokenize=False)"
        raise DataError(
            f"column {column} holds {printable(repr(wrong[0]), 80)}, which is no text; {advice}"
        )
    return rows[column]


def _encoded(
    dataset: datasets.Dataset,
    columns: Sequence[str],
    encode: Callable[[Rows], dict[str, Any]],
    limit: int | None,
) -> datasets.Dataset:
    """Encode all examples, leave out those without a token, and say how many may have been cut."""
    # Under other names: a new column would get its namesake's type, and floats be integers again.
    names = {name: f"read {name}" for name in columns}
    used = dataset.select_columns(list(names)).rename_columns(names)

    def encoded(rows: Rows) -> dict[str, Any]:
        return encode({name: rows[renamed] for name, renamed in names.items()})

    found = used.map(encoded, batched=True, remove_columns=used.column_names, desc="Encoding")
    kept = [n for n, ids in enumerate(found["input_ids"]) if ids]
    if len(kept) < len(found):
        logger.warning(
            "%d of %d examples have no token and are left out", len(found) - len(kept), len(found)
        )
        found = found.select(kept)
    if not kept:
        raise DataError("no example has a token; look at the columns of the text")
    full = sum(len(ids) == limit for rows in found.iter(1000) for ids in rows["input_ids"])
    if full:
        said = "%d of %d examples fill %d tokens: longer ones are cut"
        logger.warning(said, full, len(found), limit)
    return found
