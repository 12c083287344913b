"""A ranker run on mentions and their candidates, with little padding and every name read once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from threading import get_ident
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from transformers import (
    BertForMultipleChoice,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaForMultipleChoice,
    XLMRobertaForMultipleChoice,
)

from ..cnn import CnnForMultipleChoice, ReadTexts, is_watched
from ..collator import CandidateCollator
from ..encoding import CandidateEncoder, EncodedParts, Tail
from ..loss import masked_logits
from ..schema import Mention
from .calibration import Floats

__all__ = ["Ranker"]

_ENCODED = 2_048  # mentions that are encoded, and ordered by length, together
_KEPT_NAMES = 500_000
_BATCH_WIDTH = 4_096  # mentions times width that are quickest on processors
_INPUTS = ("input_ids", "token_type_ids")
_BY_FIRST_TOKEN = (BertForMultipleChoice, RobertaForMultipleChoice, XLMRobertaForMultipleChoice)


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
        self._model: Any = model
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
        score = self._of_pairs
        if getattr(self._model, "takes_candidate_mask", False):
            score = self._of_lists
        elif isinstance(self._model, CnnForMultipleChoice) and self._model.reads_halves():
            score = self._of_halves
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
            with _no_more_than_first_token(self._model):
                found += score(batch, batch_size, done)
        return found

    def _encoded(
        self, batch: dict[str, Any]
    ) -> tuple[list[EncodedParts], dict[str, int], npt.NDArray[np.int64]]:
        """Encode a batch; number its distinct names, and say which the candidates have."""
        if len(self._names) > _KEPT_NAMES:
            self._names.clear()
        parts = list(self._encoder.parts(batch, self._names))
        names = list(chain.from_iterable(batch["candidate_names"]))
        numbers = {name: n for n, name in enumerate(dict.fromkeys(names))}
        return parts, numbers, np.fromiter(map(numbers.__getitem__, names), np.int64)

    @torch.inference_mode()
    def _of_halves(
        self, batch: dict[str, Any], batch_size: int, done: Callable[[int], Any]
    ) -> Iterable[Floats]:
        parts, numbers, tails = self._encoded(batch)
        counts = np.array([len(own.tails) for own in parts])
        size = batch_size * max(counts)
        heads = self._read([own.head for own in parts], size, is_first=True)
        names = self._read([self._names[name].tokens for name in numbers], size, is_first=False)
        ends = np.cumsum(counts)
        for start in range(0, len(parts), batch_size):
            chosen = np.arange(start, min(start + batch_size, len(parts)))
            first = torch.from_numpy(np.repeat(chosen, counts[chosen]))
            second = torch.from_numpy(tails[ends[start] - counts[start] : ends[chosen[-1]]])
            scores: Floats = (
                self._model.join(heads.of(first), names.of(second)).double().cpu().numpy()
            )
            yield from np.split(scores, np.cumsum(counts[chosen])[:-1])
            done(len(chosen))

    def _read(self, texts: Sequence[list[int]], size: int, *, is_first: bool) -> ReadTexts:
        """Read halves of pairs, in batches of like lengths."""
        lengths = np.fromiter(map(len, texts), np.int64)
        order = np.argsort(lengths, kind="stable")
        found = []
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            attended = np.arange(lengths[chosen].max()) < lengths[chosen][:, None]
            padded = np.zeros(attended.shape, np.int64)
            tokens = chain.from_iterable(texts[i] for i in chosen.tolist())
            padded[attended] = np.fromiter(tokens, np.int64)
            ids, ends = map(torch.from_numpy, (padded, lengths[chosen]))
            device = self._model.device
            found.append(self._model.read(ids.to(device), ends.to(device), is_first=is_first))
        back = torch.from_numpy(np.argsort(order))
        return ReadTexts(*map(torch.cat, zip(*found, strict=True))).of(back)

    def _of_pairs(
        self, batch: dict[str, Any], batch_size: int, done: Callable[[int], Any]
    ) -> Iterable[Floats]:
        parts, numbers, tails = self._encoded(batch)
        counts = [len(own.tails) for own in parts]
        # Every head and every distinct tail once; pairs say where theirs begin, and how long.
        texts = [*(self._names[name].tokens for name in numbers), *(own.head for own in parts)]
        tokens = np.fromiter(chain.from_iterable(texts), np.int64)
        sizes = np.fromiter(map(len, texts), np.int64)
        starts = np.cumsum(sizes) - sizes
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


@contextmanager
def _no_more_than_first_token(model: PreTrainedModel) -> Iterator[None]:
    """Let the last layer of a model that decides by its first token work out no other token.

    That token attends to all of them, so that attention stays whole: what is saved are the products
    behind it, nine twelfths of the layer. Chunks need a whole number of them, and hooks all tokens.
    """
    by_first = type(model) in _BY_FIRST_TOKEN and not model.config.chunk_size_feed_forward
    if not by_first or is_watched(model):
        yield
        return
    encoder: Any = model.base_model.encoder
    owner = get_ident()  # who else runs the model meanwhile gets all tokens

    def cut(_: nn.Module, states: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        return tuple(x[:, :1] for x in states) if get_ident() == owner else None

    handle = encoder.layer[-1].attention.output.register_forward_pre_hook(cut)
    try:
        yield
    finally:
        handle.remove()
