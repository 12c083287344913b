"""A ranker run on mentions and their candidates, with little padding and every name read once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..collator import CandidateCollator
from ..encoding import CandidateEncoder
from ..loss import masked_logits
from ..schema import Mention
from .calibration import Floats

__all__ = ["Ranker"]

_ENCODED = 2_048  # mentions that are encoded, and ordered by length, together
_KEPT_NAMES = 500_000


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
        self._encoder = CandidateEncoder.of(tokenizer, max_length, max_name_length)
        self._collator = CandidateCollator(tokenizer)
        self._names: dict[str, list[int]] = {}

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
            encoded = self._encode(mentions[part], names[part])
            found += (self._of_lists if whole else self._of_pairs)(encoded, batch_size, done)
        return found

    def _encode(
        self, mentions: Sequence[Mention], names: Sequence[Sequence[str]]
    ) -> dict[str, list[Any]]:
        """Encode as in training; nobody knows the labels."""
        if len(self._names) > _KEPT_NAMES:
            self._names.clear()
        batch = {
            "id": [f"{mention.document}:{mention.key}" for mention in mentions],
            "left": [mention.left for mention in mentions],
            "mention": [mention.text for mention in mentions],
            "right": [mention.right for mention in mentions],
            "candidate_names": names,
            "label": [0] * len(mentions),
        }
        encoded = self._encoder(batch, self._names)
        return {name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded}

    def _of_pairs(
        self, encoded: dict[str, list[Any]], batch_size: int, done: Callable[[int], Any]
    ) -> Iterable[Floats]:
        counts = [len(row) for row in encoded["input_ids"]]
        pairs = {name: list(chain.from_iterable(rows)) for name, rows in encoded.items()}
        lengths = np.fromiter(map(len, pairs["input_ids"]), np.int64)
        scores = np.empty(len(lengths))
        order = np.argsort(lengths, kind="stable")
        size = batch_size * max(counts)
        told = 0
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            scores[chosen] = self._run(self._padded(pairs, chosen, lengths[chosen]))[:, 0]
            ranked = (start + len(chosen)) * len(counts) // len(order)  # a list may lie in many
            done(ranked - told)
            told = ranked
        return np.split(scores, np.cumsum(counts)[:-1])

    def _padded(
        self, pairs: dict[str, list[list[int]]], chosen: npt.NDArray[np.intp], lengths: Any
    ) -> dict[str, Tensor]:
        """Make a batch of pairs, each the only candidate of its mention [pairs, 1, positions]."""
        attended = np.arange(lengths.max()) < lengths[:, None]
        batch = {"attention_mask": attended.astype(np.int64)}
        for name, lists in pairs.items():
            padding = self._collator.tokenizer.pad_token_id if name == "input_ids" else 0
            batch[name] = np.full(attended.shape, padding, np.int64)
            flat = chain.from_iterable(lists[i] for i in chosen.tolist())
            batch[name][attended] = np.fromiter(flat, np.int64, int(lengths.sum()))
        return {name: torch.from_numpy(value).unsqueeze(1) for name, value in batch.items()}

    def _of_lists(
        self, encoded: dict[str, list[Any]], batch_size: int, done: Callable[[int], Any]
    ) -> Iterable[Floats]:
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
