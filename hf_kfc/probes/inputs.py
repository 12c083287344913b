"""Examples as inputs: what a model reads of them, and batches without labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..curvature.batches import named_arguments, tokens_of
from ..errors import ProbeError
from .forward import right_padded
from .rows import Rows

__all__ = [
    "Collator",
    "collated",
    "inputs_of",
    "pad_tokens",
    "refuse_empty",
    "refuse_long",
    "said_twice",
    "special_tokens_around",
    "vocabulary_of",
    "with_decoder_inputs",
]

Collator = Callable[[list[Any]], Mapping[str, Any]]
"""Makes a batch of a list of rows."""

_ENDS = ("start_positions", "end_positions")
_DECODER = "decoder_input_ids"


def inputs_of(
    model: nn.Module, example: Mapping[str, Any], columns: Sequence[str] | None
) -> list[str]:
    """Return which columns of an example are inputs: not labels, and none that nobody reads."""
    if not isinstance(example, Mapping):
        raise ProbeError(
            f"examples are {type(example).__name__}, expected mappings of columns; give a data set "
            "of those"
        )
    names = named_arguments(model) if columns is None else columns
    kept = [
        name
        for name in example
        if name in names and "label" not in name and name not in _ENDS and example[name] is not None
    ]
    if not kept:
        raise ProbeError(
            f"no column of the examples ({', '.join(example)}) is an input of "
            f"{type(model).__name__}; tokenize them, or name the inputs with `columns=`"
        )
    return kept


def with_decoder_inputs(model: nn.Module, example: Any) -> Any:
    """Give an encoder-decoder's example its decoder's inputs, made of its labels as for a loss."""
    is_pair = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if not is_pair or not isinstance(example, Mapping) or example.get(_DECODER) is not None:
        return example
    shift = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    labels = example.get("labels")
    if shift is None or labels is None or torch.as_tensor(labels).ndim != 1:
        raise ProbeError(
            f"{type(model).__name__} decodes, and an example has neither {_DECODER} nor labels to "
            f"make them of; add {_DECODER}"
        )
    shifted: Tensor = shift(labels=torch.as_tensor(labels)[None])
    return {**example, _DECODER: shifted[0].tolist()}


def collated(rows: list[dict[str, Any]], collator: Collator) -> dict[str, Tensor]:
    """Make a batch of rows, without labels and padded on the right.

    Args:
        rows: Theirs; what the decoder reads is padded here, for collators do not.
        collator: The user's.

    Raises:
        ProbeError: It cannot do without labels.
    """
    decoded = [row.pop(_DECODER) for row in rows if _DECODER in row]
    masks = [row.pop("decoder_attention_mask") for row in rows if "decoder_attention_mask" in row]
    try:
        batch = dict(collator(rows))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ProbeError(
            f"the collator makes no batch of inputs without labels ({type(error).__name__}: "
            f"{error}); give probes one that only pads, such as DataCollatorWithPadding, by "
            "`probe_collator=` of a trainer"
        ) from error
    batch = {
        name: value
        for name, value in batch.items()
        if isinstance(value, Tensor) and "label" not in name and name not in _ENDS
    }
    batch = right_padded(batch)
    if decoded:
        ids = [torch.as_tensor(row, dtype=torch.long) for row in decoded]
        seen = [torch.as_tensor(row).long() for row in masks] or [torch.ones_like(x) for x in ids]
        batch[_DECODER] = pad_sequence(ids, batch_first=True)
        batch["decoder_attention_mask"] = pad_sequence(seen, batch_first=True)
    return batch


def pad_tokens(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Pad ``input_ids`` on the right, for models that read nothing else than those and their mask.

    Args:
        rows: Each with a list of tokens.
    """
    ids = [torch.as_tensor(row["input_ids"], dtype=torch.long) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True),
        "attention_mask": pad_sequence([torch.ones_like(x) for x in ids], batch_first=True),
    }


def special_tokens_around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Return the special tokens that a tokenizer puts before and after a text."""
    if not callable(tokenizer):
        return [], []
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    ids = list(tokenizer("a")["input_ids"])
    before = list(takewhile(special.__contains__, ids))
    return before, list(takewhile(special.__contains__, reversed(ids[len(before) :])))[::-1]


def refuse_empty(rows: Rows, numbers: Sequence[int]) -> None:
    """Refuse examples without a token: in a batch of nothing else no model reads them.

    Args:
        rows: Of all examples.
        numbers: By which the message calls them.

    Raises:
        ProbeError: There is one.
    """
    ids = rows.columns.get("input_ids")
    lengths = ids.lengths[0].tolist() if ids is not None and ids.lengths else []
    for number, length in zip(numbers, lengths, strict=False):
        if not length:
            raise ProbeError(
                f"example {number} has no token (its input_ids are empty); leave such examples out"
            )


def refuse_long(model: nn.Module, asked: str, tokens: int) -> None:
    """Make sure that texts are no longer than a model has positions.

    Args:
        model: The model.
        asked: What makes them so long, for the message.
        tokens: Of the longest text.

    Raises:
        ProbeError: They are.
    """
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if 0 < (positions or 0) < tokens:
        raise ProbeError(f"{asked} and {type(model).__name__} has {positions} positions; lower it")


def vocabulary_of(model: nn.Module) -> int:
    """Return how many tokens a model has, and refuse one that does not tell."""
    size = tokens_of(model)
    if size is None:
        raise ProbeError(
            f"{type(model).__name__} does not tell its vocabulary (get_input_embeddings); give "
            "TokenTable.uniform(...) or another table"
        )
    return size


def said_twice(ids: Sequence[int], begin: int | None) -> list[int]:
    """Return the first half of a text, twice, and no longer than the text.

    Args:
        ids: Its tokens.
        begin: The token of beginnings, which stands once if the text begins with it.
    """
    start = int(ids[0] == begin)
    half = list(ids[start : (start + len(ids) + 1) // 2])
    return [*ids[:start], *half, *half][: len(ids)]
