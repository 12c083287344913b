"""Models and data of the benchmarks: candidate rankers, and batches of the sizes that rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate
from transformers import BertConfig, BertForMultipleChoice, PreTrainedModel

from hf_kfc.ranking.cnn import CnnConfig, CnnForMultipleChoice
from hf_kfc.ranking.loading import load_pretrained

Example = dict[str, Any]
Batch = dict[str, Tensor]

# Both after real examples, see batches.py: padding as in batches of 8, and about as many different
# tokens as there are in the same number of examples of the corpus that has most, or more.
PADDING = 1 / 3
ZIPF = 1.3


def encoder(
    width: int, layers: int = 3, vocabulary: int = 30522, folder: str | None = None
) -> PreTrainedModel:
    """Make a BERT with a multiple-choice head from a random start, or the first layers of one."""
    if folder is not None:
        return load_pretrained(folder, num_layers=layers)[0]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=12 if width % 12 == 0 else max(width // 32, 1),
        intermediate_size=4 * width,
    )
    return BertForMultipleChoice(config).eval()


def cnn(width: int, vocabulary: int) -> PreTrainedModel:
    """Make the convolutional ranker from a random start."""
    torch.manual_seed(0)
    return CnnForMultipleChoice(CnnConfig(vocab_size=vocabulary, hidden_size=width)).eval()


def ranking_examples(
    count: int,
    candidates: int,
    tokens: int,
    vocabulary: int,
    *,
    padding: float = PADDING,
    seed: int = 0,
) -> list[Example]:
    """Draw ranking examples: token ids by Zipf's law, as words are, and uneven lengths.

    Args:
        count: Number of examples.
        candidates: Of each; all of them are real.
        tokens: Positions of a candidate, padding included.
        vocabulary: Number of token ids; 0 is padding.
        padding: Share of the positions that are padding, below one half: lengths are uniform
            around the mean that it leaves.
        seed: Of the draw.

    Returns:
        ``input_ids`` and ``attention_mask`` ``[candidates, tokens]``, and ``labels``.
    """
    draw = torch.Generator().manual_seed(seed)
    shape = (count, candidates, tokens)
    ids = zipf_tokens(shape, vocabulary, draw)
    shortest = round(tokens * (1 - 2 * padding))
    lengths = torch.randint(max(shortest, 1), tokens + 1, shape[:2], generator=draw)
    mask = torch.arange(tokens) < lengths[..., None]
    ids = ids * mask
    labels = torch.randint(candidates, (count,), generator=draw).tolist()
    return [
        {"input_ids": ids[i], "attention_mask": mask[i].long(), "labels": labels[i]}
        for i in range(count)
    ]


def zipf_tokens(shape: Sequence[int], vocabulary: int, draw: torch.Generator) -> Tensor:
    """Draw token ids from 1 on, by Zipf's law."""
    frequencies = torch.arange(1, vocabulary, dtype=torch.float64) ** -ZIPF
    return 1 + torch.multinomial(frequencies, math.prod(shape), True, generator=draw).reshape(shape)


def batches_of(
    examples: Sequence[Example],
    size: int,
    device: str,
    collator: Callable[[Any], Batch] | None = None,
) -> list[Batch]:
    """Collate examples into batches on a device."""
    collator = collator or default_collate
    batches = [collator(examples[i : i + size]) for i in range(0, len(examples), size)]
    return [{name: t.to(device) for name, t in batch.items()} for batch in batches]


def padded_share(masks: Tensor) -> float:
    """Return the share of padding among the positions of attention masks."""
    return 1 - float(masks.double().mean())


def parameter_bytes(model: torch.nn.Module) -> int:
    """Count the bytes of a model's parameters."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def inputs_of(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a batch without its labels."""
    return {name: tensor for name, tensor in batch.items() if name != "labels"}
