"""Texts that a language model samples of itself, without those that repeat given ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..curvature.modes import frozen
from ..errors import ProbeError
from .content import Source
from .inputs import refuse_long, special_tokens_around

__all__ = ["NGRAM", "sampled_texts"]

NGRAM = 13
"""Tokens in a row that no generated text may share with texts that are not to be repeated."""


def sampled_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    count: int,
    max_length: int,
    prompts: Sequence[str | Sequence[int]] | None,
    seed: int,
    temperature: float,
    drop_repeats_of: Iterable[Any] | None,
    ngram: int,
    batch_size: int,
) -> tuple[list[list[int]], Source]:
    """Let a causal language model write texts; see ``Probes.generate``.

    Returns:
        Tokens of each text, and where they come from.

    Raises:
        ProbeError: There is nothing to begin with, or too few texts are left.
    """
    starts = _starts(model, tokenizer, prompts, max_length)
    ends = _ends(model, tokenizer)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    sampling = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_length=max_length,
        pad_token_id=padding,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=ends or None,
        use_cache=True,
    )
    known = set[tuple[int, ...]]()
    compared = 0
    for text in drop_repeats_of if drop_repeats_of is not None else ():
        known.update(_ngrams(_tokens(text, tokenizer), ngram))
        compared += 1
    counts = {"generated": 0, "repeats": 0, "duplicates": 0, "too short": 0}
    texts: dict[tuple[int, ...], None] = {}  # in their order, each once
    devices = [model.device] if model.device.type == "cuda" else []
    begin = cycle(starts)
    with (
        torch.random.fork_rng(devices),
        frozen(model),
        _generating_by(model, sampling),
        torch.no_grad(),
        tqdm(total=count, desc="generating", unit="text", disable=None) as bar,
    ):
        torch.manual_seed(seed)
        while len(texts) < count and counts["generated"] < 4 * count + batch_size:
            for text in _sample(model, list(islice(begin, batch_size)), padding, ends):
                counts["generated"] += 1
                reason = None
                if len(text) < 2:
                    reason = "too short"
                elif tuple(text) in texts:
                    reason = "duplicates"
                elif not known.isdisjoint(_ngrams(text, ngram)):
                    reason = "repeats"
                if reason is not None:
                    counts[reason] += 1
                elif len(texts) < count:
                    texts[tuple(text)] = None
                    bar.update()
    if len(texts) < count:
        told = ", ".join(f"{number} {reason}" for reason, number in counts.items())
        raise ProbeError(
            f"{len(texts)} of {count} texts are left ({told}); ask for fewer, or in Python give "
            "prompts, raise the temperature or ngram"
        )
    settings: dict[str, int | float | str] = {
        "max_length": max_length,
        "temperature": temperature,
        "seed": seed,
        "ngram": ngram,
        "prompts": 0 if prompts is None else len(prompts),
    }
    counts |= {"kept": count, "compared with": compared}
    return [list(text) for text in texts], Source("generated", settings=settings, counts=counts)


def _sample(
    model: PreTrainedModel, starts: list[list[int]], padding: int, ends: list[int]
) -> Iterator[list[int]]:
    """Continue texts up to their end, padded on the left as generation needs it."""
    longest = max(len(start) for start in starts)
    tokens = [torch.tensor(start) for start in starts]
    left = partial(pad_sequence, batch_first=True, padding_side="left")
    ids, mask = left(tokens, padding_value=padding), left([torch.ones_like(x) for x in tokens])
    found: Any = model.generate(  # type: ignore[operator]
        ids.to(model.device), attention_mask=mask.to(model.device)
    )
    for line, start in zip(found.tolist(), starts, strict=True):
        text = line[longest - len(start) :]
        end = next((n for n in range(len(start), len(text)) if text[n] in ends), len(text))
        yield text[: end + 1]


@contextmanager
def _generating_by(model: PreTrainedModel, settings: Any) -> Iterator[None]:
    """Put settings in the place of the model's own, which would cut its distribution.

    Given to ``generate``, what they leave unsaid would be filled in from the model's own.
    """
    holders = [module for module in model.modules() if "generation_config" in vars(module)]
    before = [module.generation_config for module in holders]  # an adapter's model lies within
    try:
        for module in holders:
            module.generation_config = settings
        yield
    finally:
        for module, own in zip(holders, before, strict=True):
            module.generation_config = own


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens by which a text ends, of which a model may have more than its tokenizer."""
    own = model.generation_config.eos_token_id
    known = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return sorted({token for token in known if token is not None})


def _starts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[int]] | None,
    max_length: int,
) -> list[list[int]]:
    if model.config.is_encoder_decoder or not hasattr(model, "generate"):
        raise ProbeError(
            f"{type(model).__name__} is no causal language model and cannot write inputs of its "
            "own; use Probes.from_dataset or Probes.from_tokens"
        )
    refuse_long(model, f"max_length is {max_length}", max_length)
    if prompts is not None:
        starts = [_tokens(prompt, tokenizer) for prompt in prompts]
        if any(isinstance(prompt, str) for prompt in prompts):
            _, after = special_tokens_around(tokenizer)  # a text to go on with does not end
            for prompt, start in zip(prompts, starts, strict=True):
                if after and isinstance(prompt, str) and start[-len(after) :] == after:
                    del start[-len(after) :]
        if not starts or not all(starts):
            raise ProbeError("a prompt has no tokens, or there are none; give others or None")
    else:
        # Many models begin a text with what ends the one before.
        begin = tokenizer.bos_token_id
        begin = tokenizer.eos_token_id if begin is None else begin
        if begin is None:
            raise ProbeError(
                "the tokenizer has no BOS or EOS token to begin with; save it with one, or in "
                "Python give prompts"
            )
        starts = [[begin]]
    longest = max(map(len, starts))
    if longest >= max_length:
        raise ProbeError(
            f"a prompt has {longest} tokens and max_length is {max_length}; raise max_length"
        )
    return starts


def _tokens(text: Any, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the tokens of a text, of a list of tokens, or of an example with either."""
    if isinstance(text, Mapping):
        text = text["input_ids"] if "input_ids" in text else text.get("text")
    if isinstance(text, str):
        return list(tokenizer(text)["input_ids"])
    if text is None:
        raise ProbeError("an example has neither input_ids nor text; give rows with one of them")
    return [int(token) for token in text]


def _ngrams(tokens: Sequence[int], size: int) -> Iterator[tuple[int, ...]]:
    return (tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1))
