"""Models, tokenizers and data sets made here, where a test would download them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.models.auto.auto_factory import _BaseAutoModelClass

__all__ = ["make", "put_in_place", "texts"]

NAMES = {"llama": "llama", "tinystories": "gpt2", "gpt2": "gpt2", "bert": "bert", "t5": "t5"}
"""What is in the name of a model on the Hub, and what stands in for it."""
WORDS = ["river", "stone", "garden", "evening", "letter", "window", "silver", "market", "winter"]


def texts() -> list[str]:
    """Return 31 texts of very unequal lengths, as many as the tests' own file has."""
    draw = random.Random(0)
    lengths = [3, 8, 20, 40, 60]
    return [
        " ".join(draw.choice(WORDS) for _ in range(draw.choice(lengths))).capitalize() + "."
        for _ in range(31)
    ]


def make(folder: Path) -> None:
    """Save a tiny model of random weights for each kind, with a byte-level tokenizer."""
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}
    size = _tokenizer(
        folder / "llama", ["<unk>", "<s>", "</s>"], unk=0, bos=1, eos=2, pad=2, form="$A"
    )
    config: Any = transformers.LlamaConfig(
        vocab_size=size, hidden_size=32, max_position_embeddings=512, pad_token_id=None, **heads
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "llama")
    size = _tokenizer(folder / "gpt2", ["<|endoftext|>"], unk=0, bos=0, eos=0, form="$A")
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)  # as TinyStories
    config = transformers.GPT2Config(
        vocab_size=size, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0, **drops
    )
    transformers.GPT2LMHeadModel(config).save_pretrained(folder / "gpt2")
    size = _tokenizer(
        folder / "bert",
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        pad=0,
        unk=1,
        cls=2,
        sep=3,
        mask=4,
        form="[CLS] $A [SEP]",
    )
    config = transformers.BertConfig(vocab_size=size, hidden_size=32, **heads)
    transformers.BertForSequenceClassification(config).save_pretrained(folder / "bert")
    size = _tokenizer(
        folder / "t5", ["<pad>", "</s>", "<unk>"], pad=0, eos=1, unk=2, form="$A </s>"
    )
    sizes = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4}
    config = transformers.T5Config(vocab_size=size, decoder_start_token_id=0, **sizes)
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder / "t5")


def _tokenizer(folder: Path, specials: list[str], form: str, **roles: int) -> int:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    learn = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(texts(), learn)
    made.post_processor = processors.TemplateProcessing(
        single=form, special_tokens=[(name, made.token_to_id(name)) for name in specials]
    )
    named = {f"{role}_token": specials[index] for role, index in roles.items()}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, **named)
    tokenizer.save_pretrained(folder)
    return len(tokenizer)


def put_in_place(folder: Path) -> None:
    """Let ``from_pretrained`` and ``load_dataset`` find what stands in for the Hub's."""

    def place(name: Any) -> Any:
        known = (kind for part, kind in NAMES.items() if part in str(name).lower())
        kind = None if Path(name).exists() else next(known, None)
        return name if kind is None else folder / kind

    def patch(owner: Any) -> None:
        own = owner.from_pretrained.__func__

        def from_pretrained(cls: Any, name: Any, *args: Any, **kwargs: Any) -> Any:
            there = place(name)
            is_tokenizer = issubclass(cls, transformers.PreTrainedTokenizerBase)
            kind = transformers.PreTrainedTokenizerFast if is_tokenizer and there != name else cls
            return own(kind, there, *args, **kwargs)

        owner.from_pretrained = classmethod(from_pretrained)

    for owner in (
        transformers.AutoTokenizer,
        transformers.PreTrainedTokenizerBase,
        transformers.AutoConfig,
        transformers.GenerationConfig,
        _BaseAutoModelClass,
        transformers.PreTrainedModel,
    ):
        patch(owner)
    load = datasets.load_dataset

    def load_dataset(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "text":
            return load(name, *args, **kwargs)
        rows = texts()
        columns = {
            "wikitext": {"text": [line for row in rows for line in (row, "")]},
            "cnn_dailymail": {"article": rows, "highlights": [row[:40] for row in rows]},
            "gsm8k": {"question": rows, "answer": [row[:40] for row in rows]},
            "prompts": {"prompt": rows},
        }
        made = datasets.Dataset.from_dict(next(c for part, c in columns.items() if part in name))
        return made if "split" in kwargs else datasets.DatasetDict(train=made)

    datasets.load_dataset = load_dataset
