"""Models of transformers of a few hundred parameters; each architecture is made here alone.

Sizes that a test does not give are those of its function. With a ``seed`` the model is always the
same; without one it follows from torch's generator. Its dtype is the default one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMultipleChoice,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_kfc.ranking import CnnConfig, CnnForMultipleChoice

VOCABULARY = 20
"""Tokens of a model where nothing else is said."""
DECODER_VOCABULARY = 11
"""Tokens of ``DECODERS``: so few that texts repeat them."""
RANKER_VOCABULARY = 24
"""Tokens of ``RANKERS``."""


def _make(
    configuration: Any, head: Any, seed: int | None, settings: dict[str, Any], **sizes: Any
) -> Any:
    if seed is not None:
        torch.manual_seed(seed)
    return head(configuration(**(sizes | settings)))


# Architectures


def bert(
    head: Any = BertForMultipleChoice,
    *,
    seed: int | None = None,
    dropout: float = 0.1,
    **settings: Any,
) -> Any:
    """A BERT with any head."""
    model = _make(
        BertConfig,
        head,
        seed,
        settings,
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=16,
        initializer_range=0.5,
        attn_implementation="eager",
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return model.to(torch.get_default_dtype())


def cnn(*, seed: int | None = None, **settings: Any) -> CnnForMultipleChoice:
    """The library's CNN."""
    sizes = {"vocab_size": RANKER_VOCABULARY, "hidden_size": 8}
    model: CnnForMultipleChoice = _make(CnnConfig, CnnForMultipleChoice, seed, settings, **sizes)
    return model


def gpt2(*, seed: int | None = None, dropout: float = 0.1, **settings: Any) -> GPT2LMHeadModel:
    """A GPT-2, its projections stored as Conv1D."""
    model = _make(
        GPT2Config,
        GPT2LMHeadModel,
        seed,
        settings,
        vocab_size=DECODER_VOCABULARY,
        n_embd=8,
        n_layer=1,
        n_head=2,
        n_positions=16,
        initializer_range=0.5,
        bos_token_id=None,
        eos_token_id=None,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
    )
    return _jittered(model)


def llama(
    head: Any = LlamaForCausalLM,
    configuration: Any = LlamaConfig,
    *,
    seed: int | None = None,
    **settings: Any,
) -> Any:
    """A Llama, or a model of another kind with the same settings, with any head."""
    model = _make(
        configuration,
        head,
        seed,
        settings,
        vocab_size=DECODER_VOCABULARY,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        initializer_range=0.5,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    return _jittered(model)


def bart(
    head: Any = BartForConditionalGeneration, *, seed: int | None = None, **settings: Any
) -> Any:
    """A BART with any head."""
    model = _make(
        BartConfig,
        head,
        seed,
        settings,
        vocab_size=VOCABULARY,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=12,
        decoder_ffn_dim=12,
        max_position_embeddings=32,
        dropout=0.0,
    )
    return model.to(torch.get_default_dtype())


def t5(*, seed: int | None = None, **settings: Any) -> T5ForConditionalGeneration:
    """A T5."""
    model: T5ForConditionalGeneration = _make(
        T5Config,
        T5ForConditionalGeneration,
        seed,
        settings,
        vocab_size=VOCABULARY,
        d_model=8,
        d_kv=4,
        d_ff=12,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
        dropout_rate=0.0,
    )
    return model.to(torch.get_default_dtype())


def _jittered(model: PreTrainedModel) -> Any:
    """Move gains and biases off their start, where errors in them would not show."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model.to(torch.get_default_dtype())


# Models of one purpose


DECODERS: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": gpt2,
    "gpt2_untied": lambda: gpt2(tie_word_embeddings=False),
    "llama": llama,
    "llama_tied": lambda: llama(tie_word_embeddings=True),
    "qwen3": lambda: llama(Qwen3ForCausalLM, Qwen3Config, head_dim=4),
}
"""Qwen 3 normalises queries and keys too, one head at a time."""


def ranking_bert(dropout: float = 0.0) -> BertForMultipleChoice:
    """A BERT of two layers for encoded ranking examples; always the same."""
    model: BertForMultipleChoice = bert(
        seed=0,
        dropout=dropout,
        vocab_size=RANKER_VOCABULARY,
        num_hidden_layers=2,
        intermediate_size=16,
        initializer_range=0.4,
        attn_implementation="sdpa",
    )
    return model


def ranking_cnn(dropout: float = 0.0) -> CnnForMultipleChoice:
    """A CNN for the same examples; always the same."""
    return cnn(seed=0, dropout=dropout)


RANKERS: dict[str, Callable[..., PreTrainedModel]] = {"bert": ranking_bert, "cnn": ranking_cnn}


def text_llama(attention_dropout: float = 0.0) -> LlamaForCausalLM:
    """A Llama; its loss is divided by the labelled tokens of all micro-batches."""
    model: LlamaForCausalLM = llama(
        seed=0,
        vocab_size=VOCABULARY,
        initializer_range=0.3,
        attention_dropout=attention_dropout,
    )
    return model


def text_t5() -> T5ForConditionalGeneration:
    """A T5, always the same."""
    return t5(seed=0)


def classifier(labels: int = 3, dropout: float = 0.0) -> BertForSequenceClassification:
    """Its loss is a mean over the micro-batch, though its forward takes ``num_items_in_batch``."""
    model: BertForSequenceClassification = bert(
        BertForSequenceClassification,
        seed=0,
        dropout=dropout,
        num_labels=labels,
        initializer_range=0.3,
        attn_implementation="sdpa",
    )
    return model


class OtherLinear(nn.Linear):
    """It computes something else than its parent, whose rule does not fit it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.tanh())


def bert_without_a_rule() -> BertForMultipleChoice:
    """A tiny BERT with a pooler that no rule covers."""
    model: BertForMultipleChoice = bert()
    model.bert.pooler.dense.__class__ = OtherLinear
    return model
