"""What the examples beside are made of: questions with answers, and tiny models of their words.

In a script of yours, `AutoModel....from_pretrained` and a data set stand in the place of these.
"""

from __future__ import annotations

import random
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

WORDS = {
    "kitchen": (["flour", "milk", "butter", "salt"], ["stir", "bake", "fry", "chop"]),
    "pharmacy": (["aspirin", "syrup", "iron", "salt"], ["swallow", "drink", "inhale", "stop"]),
}
FILLERS = ["question", "answer", "what", "to", "do", "with", "you", "slowly", "twice", ":", "?"]
CHAT = (
    "{% for message in messages %}{% if message['role'] == 'user' %}question : {{ message"
    "['content'] }} {% else %}{% generation %}answer : {{ message['content'] }} [END] "
    "{% endgeneration %}{% endif %}{% endfor %}"
)
"""TRL learns the parts between `generation` and `endgeneration` with `assistant_only_loss`."""


def questions(place: str, count: int) -> list[tuple[str, str]]:
    """Make questions and their answers, of uneven length."""
    draw, (things, verbs) = random.Random(place), WORDS[place]
    pairs = []
    for _ in range(count):
        index = draw.randrange(4)
        more = " slowly" * draw.randrange(4)
        pairs.append((f"what to do with {things[index]} ?", f"you {verbs[index]}{more} ."))
    return pairs


def tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of the words above."""
    words = {w for things, verbs in WORDS.values() for w in things + verbs} | {*FILLERS, "."}
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[END]", *sorted(words)])}
    own = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[END]"}
    return PreTrainedTokenizerFast(tokenizer_object=own, chat_template=CHAT, **special)


def decoder() -> LlamaForCausalLM:
    """Make a Llama of one layer."""
    set_seed(0)
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer()), **shape, **heads))


def encoder(labels: int = 2) -> BertForSequenceClassification:
    """Make a BERT of one layer; `.bert` is the part that sentence-transformers reads."""
    set_seed(0)
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    size = {"vocab_size": len(tokenizer()), "num_attention_heads": 2, "num_labels": labels}
    config = BertConfig(max_position_embeddings=32, initializer_range=0.2, **size, **shape, **none)
    return BertForSequenceClassification(config)


def encoder_decoder() -> T5ForConditionalGeneration:
    """Make a T5 of one layer."""
    set_seed(0)
    shape: dict[str, Any] = {"d_model": 16, "d_ff": 24, "num_layers": 1, "num_heads": 2, "d_kv": 8}
    config = T5Config(vocab_size=len(tokenizer()), dropout_rate=0.0, **shape)
    config.decoder_start_token_id = 0
    return T5ForConditionalGeneration(config)
