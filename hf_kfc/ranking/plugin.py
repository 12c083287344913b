"""What the commands of hf_kfc learn of ranking: the CNN, and how examples are encoded."""

from __future__ import annotations

from collections.abc import Sequence

import datasets
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..commands.formats import Choices, ExampleFormat, Prepared, register_format
from ..commands.loading import register_model
from ..errors import DataError
from .cnn import CnnForMultipleChoice
from .collator import CandidateCollator
from .encoding import encode_candidates
from .objective import ranking_forward, ranking_position_mask
from .schema import FEATURES

__all__ = ["RANKING"]

_MAX_LENGTH = 96  # the recipes' default


def _fits(model: PreTrainedModel, columns: Sequence[str]) -> bool:
    return type(model).__name__.endswith("ForMultipleChoice") or set(FEATURES) <= set(columns)


def _prepare(
    dataset: datasets.Dataset,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    choices: Choices,
) -> Prepared:
    names = set(dataset.column_names)
    if not {"input_ids", "labels"} <= names:
        if lacking := sorted(set(FEATURES) - names):
            raise DataError(
                f"the data set has no column {', '.join(lacking)}; give ranking examples, or "
                "encoded ones with input_ids and labels"
            )
        dataset = encode_candidates(dataset, tokenizer, choices.max_length or _MAX_LENGTH)
    return Prepared(dataset, CandidateCollator(tokenizer), ranking_forward, ranking_position_mask)


RANKING = ExampleFormat(
    "candidate ranking",
    f"a multiple-choice model with the columns {', '.join(FEATURES)}",
    _fits,
    _prepare,
)

register_model(CnnForMultipleChoice)
register_format(RANKING)
