"""Causal language models of a few hundred parameters, and texts for them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCABULARY = 11


def gpt2(tied: bool = True, **settings: Any) -> PreTrainedModel:
    """A GPT-2, its projections stored as Conv1D; in the default dtype."""
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=8,
        n_layer=1,
        n_head=2,
        n_positions=16,
        initializer_range=0.5,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
        **settings,
    )
    return _jittered(GPT2LMHeadModel(config))


def llama(
    tied: bool = False,
    kind: tuple[Any, Any] = (LlamaConfig, LlamaForCausalLM),
    **settings: Any,
) -> PreTrainedModel:
    """A Llama, or a model of another kind with the same settings; in the default dtype."""
    configuration, model = kind
    config = configuration(
        vocab_size=VOCABULARY,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        initializer_range=0.5,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=None,
        **settings,
    )
    return _jittered(model(config))


DECODERS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": gpt2,
    "gpt2_untied": lambda: gpt2(tied=False),
    "llama": llama,
    "llama_tied": lambda: llama(tied=True),
    "qwen3": lambda: llama(kind=(Qwen3Config, Qwen3ForCausalLM), head_dim=4),
}
"""Qwen 3 normalises queries and keys too, one head at a time."""


def texts(count: int) -> list[Tensor]:
    """Token ids of mixed lengths, from 3 on."""
    return [torch.randint(0, VOCABULARY, (3 + index % 3,)) for index in range(count)]


def pad_texts(extra: int = 0, prompt: int = 0) -> Callable[[list[Tensor]], dict[str, Tensor]]:
    """Make a collator that pads to the longest text and further, with no label on a prompt."""

    def collate(rows: list[Tensor]) -> dict[str, Tensor]:
        shape = len(rows), max(map(len, rows)) + extra
        batch = {
            "input_ids": torch.zeros(shape, dtype=torch.long),
            "attention_mask": torch.zeros(shape, dtype=torch.long),
            "labels": torch.full(shape, -100),
        }
        for row, ids in enumerate(rows):
            batch["input_ids"][row, : len(ids)] = ids
            batch["attention_mask"][row, : len(ids)] = 1
            batch["labels"][row, prompt : len(ids)] = ids[prompt:]
        return batch

    return collate


def _jittered(model: PreTrainedModel) -> PreTrainedModel:
    """Move gains and biases off their start, where errors in them would not show."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.to(torch.get_default_dtype())
