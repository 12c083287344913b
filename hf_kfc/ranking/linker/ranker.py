"""A ranker run on mentions and their candidates, with little padding and every name read once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..collator import CandidateCollator
from ..encoding import CandidateEncoder, Tail
from ..loss import masked_logits
from ..schema import Mention
from .calibration import Floats

__all__ = ["Ranker"]

_ENCODED = 2_048  # mentions that are encoded, and ordered by length, together
_KEPT_NAMES = 500_000
_BATCH_WIDTH = 4_096  # mentions times width that are quickest on processors
_INPUTS = ("input_ids", "token_type_ids")


class Ranker:
    """Scores candidates.

    A ranker scores each pair of a mention and a candidate by itself, so that pairs go through it
    in batches of like lengths, whose ever they are. One whose scores depend on the other candidates
    says so (``takes_candidate_mask``), and gets mentions whole.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        max_length: The most tokens of a pair.
        max_name_length: The most tokens of a name.

    Attributes:
        batch_size: How many mentions a processor ranks together in the least time.

    Raises:
        DataError: Tokenizer and lengths do not fit.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        max_name_length: int,
    ) -> None:
        self._model = model
        width = getattr(model.config, "hidden_size", _BATCH_WIDTH)
        self.batch_size = min(max(1, _BATCH_WIDTH // width), 64)
        self._encoder = CandidateEncoder.of(tokenizer, max_length, max_name_length)
        self._collator = CandidateCollator(tokenizer)
        self._names: dict[str, Tail] = {}

    def __call__(
        self,
        mentions: Sequence[Mention],
        names: Sequence[Sequence[str]],
        batch_size: int,
        done: Callable[[int], Any],
    ) -> list[Floats]:
        """Score the candidates of mentions.

        Args:
            mentions: The mentions.
            names: What the candidates of each are called.
            batch_size: How many mentions are ranked together.
            done: Told, again and again, how many more mentions are ranked.

        Returns:
            The scores [candidates] of each mention.
        """
        found: list[Floats] = []
        whole = getattr(self._model, "takes_candidate_mask", False)
        for start in range(0, len(mentions), _ENCODED):
            part = slice(start, start + _ENCODED)
            batch = {
                "id": [f"{mention.document}:{mention.key}" for mention in mentions[part]],
                "left": [mention.left for mention in mentions[part]],
                "mention": [mention.text for mention in mentions[part]],
                "right": [mention.right for mention in mentions[part]],
                "candidate_names": names[part],
                "label": [0] * len(mentions[part]),  # nobody knows it
            }
            found += (self._of_lists if whole else self._of_pairs)(batch, batch_size, done)
        return found

    def _of_pairs(
        self, batch: dict[str, Any], batch_size: int, done: Callable[[int], Any]
    ) -> Iterable[Floats]:
        if len(self._names) > _KEPT_NAMES:
            self._names.clear()
        parts = list(self._encoder.parts(batch, self._names))
        counts = [len(own.tails) for own in parts]
        names = batch["candidate_names"]
        numbers = {name: n for n, name in enumerate(dict.fromkeys(chain.from_iterable(names)))}
        # Every head and every distinct tail once; pairs say where theirs begin, and how long.
        texts = [*(self._names[name].tokens for name in numbers), *(own.head for own in parts)]
        tokens = np.fromiter(chain.from_iterable(texts), np.int64)
        sizes = np.fromiter(map(len, texts), np.int64)
        starts = np.cumsum(sizes) - sizes
        tails = np.fromiter(map(numbers.__getitem__, chain.from_iterable(names)), np.int64)
        heads = np.repeat(np.arange(len(numbers), len(texts)), counts)
        head_sizes, head_starts = sizes[heads], starts[heads]
        tail_starts = starts[tails] - head_sizes  # where it would begin without a head before it
        lengths = head_sizes + sizes[tails]
        scores = np.empty(len(lengths))
        order = np.argsort(lengths, kind="stable")
        size = batch_size * max(counts)
        told = 0
        for first in range(0, len(order), size):
            chosen = order[first : first + size]
            places = np.arange(lengths[chosen].max())
            attended, in_head = (places < own[chosen][:, None] for own in (lengths, head_sizes))
            begins = np.where(in_head, head_starts[chosen][:, None], tail_starts[chosen][:, None])
            padding = self._collator.tokenizer.pad_token_id
            padded = {"input_ids": np.full(attended.shape, padding, np.int64)}
            padded["input_ids"][attended] = tokens[(begins + places)[attended]]
            if self._encoder.with_types:
                pair = self._encoder.pair
                types = np.where(in_head, pair.first_type, pair.second_type)
                padded["token_type_ids"] = np.where(attended, types, 0)
            padded["attention_mask"] = attended.astype(np.int64)
            tensors = {name: torch.from_numpy(own).unsqueeze(1) for name, own in padded.items()}
            scores[chosen] = self._run(tensors)[:, 0]  # [pairs, 1, positions]
            ranked = (first + len(chosen)) * len(counts) // len(order)  # a list may lie in many
            done(ranked - told)
            told = ranked
        return np.split(scores, np.cumsum(counts)[:-1])

    def _of_lists(
        self, batch: dict[str, Any], batch_size: int, done: Callable[[int], Any]
    ) -> Iterable[Floats]:
        encoded = self._encoder(batch)
        encoded = {name: own for name, own in encoded.items() if name in _INPUTS}
        rows = [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]
        lengths = [max(map(len, row["input_ids"])) for row in rows]
        order = sorted(range(len(rows)), key=lengths.__getitem__)
        found: list[Floats] = [np.empty(0)] * len(rows)
        for start in range(0, len(rows), batch_size):
            chosen = order[start : start + batch_size]
            scores = self._run(self._collator([rows[i] for i in chosen]))
            for i, own in zip(chosen, scores, strict=True):
                found[i] = own[: len(rows[i]["input_ids"])]
            done(len(chosen))
        return found

    @torch.inference_mode()
    def _run(self, batch: dict[str, Tensor]) -> Floats:
        """Run the model on a batch: scores [mentions, candidates]."""
        device = next(self._model.parameters()).device
        batch = {name: value.to(device) for name, value in batch.items()}
        logits = self._model(**batch).logits
        if "candidate_mask" in batch:
            logits = masked_logits(logits, batch["candidate_mask"])
        found: Floats = logits.double().cpu().numpy()
        return found
