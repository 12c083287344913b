"""Examples and batches as the Trainer takes them: what a model does not read is left out."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any

import datasets
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel

from ..errors import CurvatureError

__all__ = ["Collate", "named_arguments", "refuse_other_data", "to_device", "tokens_of"]

logger = logging.getLogger(__name__)

_LABELS = {"label", "label_ids", "labels"}


def refuse_other_data(dataset: Any) -> None:
    """Refuse what is no data set of examples by index: a stream, several splits, a data loader."""
    kind = type(dataset).__name__
    if isinstance(dataset, Mapping):
        splits = ", ".join(str(name) for name in list(dataset)[:5])
        raise CurvatureError(f"a {kind} holds several data sets ({splits}); give one of them")
    if isinstance(dataset, DataLoader):
        raise CurvatureError("a DataLoader makes batches; give its data set and its collator")
    if isinstance(dataset, IterableDataset | datasets.IterableDataset):
        raise CurvatureError(
            f"a {kind} is a stream, and curvature needs examples by index; give a data set with a "
            "length, for example datasets.Dataset.from_list(list(stream.take(1000)))"
        )
    if hasattr(dataset, "iloc"):
        raise CurvatureError(
            f"a {kind} has columns by name; give datasets.Dataset.from_pandas(...) of it"
        )
    has_items = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if not has_items or isinstance(dataset, str):
        raise CurvatureError(
            f"a {kind} has no examples by index; give a data set with a length and items"
        )


_MASK = "attention_mask"


class Collate:
    """Makes batches of tensors; columns that the model does not read are left out, as by Trainer.

    A collator that cannot do with all columns of the examples (texts, for example) gets those that
    the model's forward names, and labels. Of its batch None, and what is neither a tensor nor named
    by the forward, is left out.

    Args:
        model: The model.
        collator: The user's.
        reads_all: Whether batches are read by a function of the user's, which may know tensors
            that the model does not name.
    """

    def __init__(
        self, model: nn.Module, collator: Callable[[list[Any]], Mapping[str, Any]], reads_all: bool
    ) -> None:
        if not callable(collator):
            raise CurvatureError(
                f"data_collator is a {type(collator).__name__}; give a function that makes a batch "
                "of a list of examples, as transformers.default_data_collator"
            )
        self._collator = collator
        self._named, self._takes_others = _signature(model)
        self._tokens = tokens_of(model)
        self._reads_all = reads_all
        self._strips: bool | None = None

    def __call__(self, rows: Sequence[Any]) -> dict[str, Any]:
        """Make one batch; what a collator takes out of the examples is in them afterwards.

        Raises:
            CurvatureError: It is none of tensors by name.
        """
        batch = self._collated(rows)
        tensors = isinstance(batch, Mapping) and [isinstance(v, Tensor) for v in batch.values()]
        if not tensors or not any(tensors):
            raise CurvatureError(
                f"the collator makes a {type(batch).__name__} without tensors by name; let it "
                "return some, as transformers.default_data_collator does"
            )
        self._refuse_other_tokens(batch.get("input_ids"))
        # A mask tells which positions count, also to a model that does not read it (xLSTM).
        return {n: v for n, v in batch.items() if self._is_read(n, v) or n == _MASK}

    def _refuse_other_tokens(self, ids: Any) -> None:
        if isinstance(ids, Tensor) and ids.ndim > 1 and len(ids) and not ids.numel():
            raise CurvatureError(
                "an example has no token (its input_ids are empty); leave such examples out"
            )
        if self._tokens is None or not isinstance(ids, Tensor) or not ids.numel():
            return
        least, most = (int(value) for value in ids.aminmax())
        if ids.is_floating_point() or (least >= 0 and most < self._tokens):
            return
        raise CurvatureError(
            f"input_ids has tokens from {least} to {most}, and the model has {self._tokens}; give "
            "the tokenizer's model, or resize its embeddings (resize_token_embeddings)"
        )

    def read(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return of a batch what the model reads."""
        return {n: v for n, v in batch.items() if n != _MASK or self._is_read(n, v)}

    def _collated(self, rows: Sequence[Any]) -> Mapping[str, Any]:
        if self._strips:
            return self._collator(self._stripped(rows))
        own = [copy(row) if isinstance(row, Mapping) else row for row in rows]
        if self._strips is False or not all(isinstance(row, Mapping) for row in rows):
            return self._collator(own)
        try:
            batch = self._collator(own)
        except Exception as error:
            stripped = self._stripped(rows)
            left_out = sorted(rows[0].keys() - stripped[0].keys())
            if not left_out:
                raise
            try:
                batch = self._collator(stripped)
            except Exception:  # the columns are not what it cannot do with
                raise error from None
            logger.info("columns that the model does not read are left out: %s", left_out)
            self._strips = True
            return batch
        self._strips = False
        return batch

    def _stripped(self, rows: Sequence[Any]) -> list[Any]:
        kept = self._named | _LABELS
        return [{name: value for name, value in row.items() if name in kept} for row in rows]

    def _is_read(self, name: str, value: Any) -> bool:
        if value is None:
            return False
        if name in self._named or name == "labels":
            return True
        return isinstance(value, Tensor) and (self._reads_all or self._takes_others)


def tokens_of(model: nn.Module) -> int | None:
    """Return how many tokens a model has; None if it does not tell."""
    get: Callable[[], Any] | None = getattr(model, "get_input_embeddings", None)
    try:
        return getattr(get() if get is not None else None, "num_embeddings", None)
    except NotImplementedError:  # as transformers says of models that have none
        return None


def named_arguments(model: nn.Module) -> set[str]:
    """Return the names that a model's forward takes; of one that PEFT wraps, the plain model's."""
    return _signature(model)[0]


def _signature(model: nn.Module) -> tuple[set[str], bool]:
    """Return the names that a model's forward takes, and whether it may take others."""
    get_base: Callable[[], nn.Module] | None = getattr(model, "get_base_model", None)
    base = model if get_base is None else get_base()  # of PEFT
    parameters = inspect.signature(base.forward).parameters.values()
    named = {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    takes_others = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return named, takes_others and not isinstance(base, PreTrainedModel)


def to_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Move the tensors of a batch."""
    return {n: v.to(device) if isinstance(v, Tensor) else v for n, v in batch.items()}
