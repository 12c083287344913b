"""Tokens of few examples, read as the unknown token: nothing that is summed is made of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.utils.rnn import pad_sequence

from ..curvature_arguments import CurvatureArguments
from ..errors import CurvatureError
from .layers import tokens_of_examples
from .objective import attended

__all__ = ["RareTokens", "count_examples", "labels_are_tokens", "unknown_token"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RareTokens:
    """Which tokens stand in few examples, and what is read in their place.

    Args:
        is_rare: Whether each token is, shape [V] with V above every token that was counted.
        unknown: The token that is read in their place.
        are_labels: Whether labels are tokens too.
    """

    is_rare: Tensor
    unknown: int
    are_labels: bool

    @classmethod
    def count(
        cls,
        batches: Iterable[tuple[int, Mapping[str, Tensor]]],
        args: CurvatureArguments,
        model: nn.Module,
        are_labels: bool,
    ) -> RareTokens:
        """Count in how many examples each token stands, over all processes; no model is run.

        Args:
            batches: This process's examples, each batch with how many it has.
            args: Tells how many make a token frequent, and which one is unknown.
            model: Its padding tokens are not replaced: it may see by them where a text ends.
            are_labels: Whether labels are tokens, see :func:`labels_are_tokens`.

        Raises:
            CurvatureError: A batch has no ``input_ids``.
        """
        device = next(model.parameters()).device
        counts = count_examples(batches, device, are_labels)
        if dist.is_initialized() and dist.get_world_size() > 1:
            size = torch.tensor(len(counts), device=device)
            dist.all_reduce(size, dist.ReduceOp.MAX)
            counts = pad_sequence([counts, counts.new_zeros(int(size))]).sum(1)
            dist.all_reduce(counts)
        assert args.unknown_token_id is not None  # see unknown_token
        is_rare = counts < args.min_token_examples
        for token in {*_padding_tokens(model), args.unknown_token_id}:
            is_rare[token : token + 1] = False
        logger.info(
            "%d of %d tokens stand in fewer than %d examples; they are read as the unknown token",
            int((is_rare & (counts > 0)).sum()),
            int((counts > 0).sum()),
            args.min_token_examples,
        )
        return cls(is_rare, args.unknown_token_id, are_labels)

    def without(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Read rare tokens of a batch as the unknown one; as labels they are no decisions."""
        seen = dict(batch)
        for name, ids in _ids(batch):
            seen[name] = ids.masked_fill(self._among(ids), self.unknown)
        if self.are_labels:
            labels = batch["labels"]
            seen["labels"] = labels.masked_fill(self._among(labels), -100)
        return seen

    def _among(self, ids: Tensor) -> Tensor:
        last = len(self.is_rare) - 1  # a random collator may show others than were counted
        return (self.is_rare[ids.clamp(0, last)] & (ids >= 0)) | (ids > last)


def count_examples(
    batches: Iterable[tuple[int, Mapping[str, Tensor]]],
    device: torch.device,
    are_labels: bool = False,
) -> Tensor:
    """Count in how many examples each token stands, or as a label, shape [largest token + 1]."""
    counts = torch.zeros(0, dtype=torch.long, device=device)
    for examples, batch in batches:
        counts = pad_sequence([counts, _examples_of(batch, examples, are_labels)]).sum(1)
    return counts


def unknown_token(
    args: CurvatureArguments, data_collator: Callable[..., Any], available: int
) -> int | None:
    """Return the token that rare ones are read as; None if all are read as they are.

    Args:
        args: The arguments; the token is by default that of the collator's tokenizer.
        data_collator: May have a tokenizer.
        available: How many examples there are.

    Raises:
        CurvatureError: It is not known, or with so few examples every token is rare.
    """
    if not args.min_token_examples:
        return None
    if available < args.min_token_examples:
        raise CurvatureError(
            f"with {available} examples no token stands in min_token_examples="
            f"{args.min_token_examples} of them; estimate from more"
        )
    unknown = args.unknown_token_id
    if unknown is None:
        unknown = getattr(getattr(data_collator, "tokenizer", None), "unk_token_id", None)
    if unknown is None:
        raise CurvatureError(
            "min_token_examples needs the token that rare ones are read as, and the collator has "
            "no tokenizer with an unknown token; give unknown_token_id"
        )
    return int(unknown)


def labels_are_tokens(model: nn.Module, logits: Tensor, labels: Tensor) -> bool:
    """Whether a model's labels are tokens: one for each position, with a score for every token."""
    get_head: Callable[[], Any] | None = getattr(model, "get_output_embeddings", None)
    rows = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    has_head = get_head is not None and get_head() is not None
    return labels.ndim > 1 and (has_head or logits.shape[-1] >= max(rows, default=0))


def _padding_tokens(model: nn.Module) -> set[int]:
    found = {m.padding_idx for m in model.modules() if isinstance(m, nn.Embedding)}
    found.add(getattr(getattr(model, "config", None), "pad_token_id", None))
    return {token for token in found if token is not None and token >= 0}


def _ids(batch: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in batch.items():
        if name.endswith("input_ids") and isinstance(value, Tensor):
            yield name, value


def _examples_of(batch: Mapping[str, Any], examples: int, are_labels: bool) -> Tensor:
    """Count in how many examples of a batch each token stands, shape [largest token + 1]."""
    read: list[tuple[Tensor, Tensor]] = []
    for name, ids in _ids(batch):
        mask = batch.get(name.replace("input_ids", "attention_mask"))
        seen = attended(mask, ids) if isinstance(mask, Tensor) else None
        if seen is None or seen.shape != ids.shape:
            seen = torch.ones_like(ids, dtype=torch.bool)
        read.append((ids, seen))
    if not read:
        raise CurvatureError(
            "min_token_examples needs batches with input_ids, and the collator's have only "
            f"{', '.join(batch)}; leave it 0"
        )
    if are_labels:
        read.append((batch["labels"], batch["labels"] >= 0))
    columns = ([part.reshape(examples, -1) for part in parts] for parts in zip(*read, strict=True))
    tokens, _ = tokens_of_examples(*(torch.cat(own, dim=1) for own in columns))
    return torch.bincount(tokens)
