"""Tiny models of the architectures in transformers, with data that their own losses accept.

A config is made tiny by the names of its fields: sizes, layers, heads, experts. What that does not
build is told, with the reason, and counts as not tried.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from tiny_settings import SETTINGS, SIZES, VOCABULARY
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

__all__ = ["TASKS", "Architecture", "architectures", "build", "collator", "examples_for"]

LABELS = 3
LENGTHS = (11, 8, 10, 9)
MOST_PARAMETERS = 600_000

TASKS = {
    "causal_lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "masked_lm": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "sequence_classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "token_classification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "multiple_choice": "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES",
    "question_answering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "seq2seq_lm": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "image_classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "ctc": "MODEL_FOR_CTC_MAPPING_NAMES",
}
"""Tasks, and the mapping of transformers that lists the classes with their head."""

_NO_DROPOUT = ("dropout", "drop")


@dataclass(frozen=True)
class Architecture:
    """One class of transformers with one head."""

    task: str
    model_type: str
    class_name: str

    def __str__(self) -> str:
        return f"{self.task}-{self.class_name}"


def architectures(task: str | None = None) -> Iterator[Architecture]:
    """List every class of the tasks, once."""
    seen = set[str]()
    for name, mapping in TASKS.items():
        if task not in (None, name):
            continue
        for model_type, names in getattr(modeling_auto, mapping).items():
            for class_name in (names,) if isinstance(names, str) else names:
                if class_name not in seen and hasattr(transformers, class_name):
                    seen.add(class_name)
                    yield Architecture(name, model_type, class_name)


def _shrunk(config_class: type[PreTrainedConfig], more: Mapping[str, Any]) -> PreTrainedConfig:
    default = config_class()
    known = default.to_dict()
    changes: dict[str, Any] = {}
    for name, value in known.items():
        if name in SIZES and isinstance(value, int | None) and not isinstance(value, bool):
            if value is None and name not in ("pad_token_id", "bos_token_id", "eos_token_id"):
                continue
            changes[name] = SIZES[name]
        elif isinstance(value, float) and any(part in name for part in _NO_DROPOUT):
            changes[name] = 0.0
    changes |= more
    for name, value in known.items():
        if isinstance(value, dict) and isinstance(getattr(default, name, None), PreTrainedConfig):
            changes[name] = _shrunk(type(getattr(default, name)), {}).to_dict()
    if "qk_rope_head_dim" in known and "head_dim" in known:
        changes["head_dim"] = changes["qk_rope_head_dim"]  # latent attention rotates that part
    layer_types = known.get("layer_types")
    if isinstance(layer_types, list):
        kinds = list(dict.fromkeys(layer_types))
        changes["layer_types"] = (kinds * 2)[:2] if len(kinds) < 2 else kinds[:2]
    return config_class(**changes)


def build(architecture: Architecture) -> PreTrainedModel:
    """Build a tiny model, in evaluation mode and float32."""
    kind = getattr(transformers, architecture.class_name)
    config_class = kind.config_class or CONFIG_MAPPING[architecture.model_type]
    labels = {"num_labels": 2 if architecture.task == "question_answering" else LABELS}
    config = _shrunk(config_class, {**labels, **SETTINGS.get(architecture.model_type, {})})
    if hasattr(config, "decoder_start_token_id") or config.is_encoder_decoder:
        config.decoder_start_token_id = 0  # some defaults leave it to the checkpoint
    config.use_cache = False
    config._attn_implementation = config._experts_implementation = "eager"  # they know float64
    with torch.device("meta"):
        size = sum(p.numel() for p in kind(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"it has {size:,} parameters")
    torch.manual_seed(0)
    model: PreTrainedModel = kind(config)
    return model.eval()


def examples_for(architecture: Architecture, model: nn.Module) -> list[dict[str, Tensor]]:
    """Make a handful of examples, of uneven length, as tensors."""
    generator = torch.Generator().manual_seed(1)

    def ids(length: int, low: int = 5) -> Tensor:
        return torch.randint(low, VOCABULARY - 2, (length,), generator=generator)

    task, examples = architecture.task, []
    for number, length in enumerate(LENGTHS):
        text = ids(length)
        example: dict[str, Tensor] = {"input_ids": text}
        if task == "causal_lm":
            example["labels"] = text.clone()
        elif task == "masked_lm":
            labels = torch.full_like(text, -100)
            labels[1 + number % 2] = text[1 + number % 2]
            example["labels"] = labels
        elif task == "sequence_classification":
            text[-1] = 2  # some encoder-decoders decide by the end-of-text token
            example["labels"] = torch.tensor(number % LABELS)
        elif task == "token_classification":
            example["labels"] = torch.randint(0, LABELS, (length,), generator=generator)
        elif task == "multiple_choice":
            example["input_ids"] = torch.stack([ids(length), ids(length)])
            example["labels"] = torch.tensor(number % 2)
        elif task == "question_answering":
            example["start_positions"] = torch.tensor(1)
            example["end_positions"] = torch.tensor(number % 3 + 1)
        elif task == "seq2seq_lm":
            example["labels"] = ids(LENGTHS[-1 - number])
        elif task == "image_classification":
            size = getattr(model.config, "image_size", 16)
            size = size if isinstance(size, int) else size[0]
            channels = getattr(model.config, "num_channels", 3)
            pixels = torch.randn(channels, size, size, generator=generator)
            example = {"pixel_values": pixels, "labels": torch.tensor(number % LABELS)}
        elif task == "ctc":
            wave = torch.randn(400 + 40 * number, generator=generator)
            example = {"input_values": wave, "labels": ids(3)}
        examples.append(example)
    return examples


def collator(model: nn.Module) -> Callable[[list[dict[str, Tensor]]], dict[str, Tensor]]:
    """Pad on the right, with an attention mask where the model takes one, read or not."""
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = {}
        for name in rows[0]:
            values = [row[name] for row in rows]
            fill = -100 if name == "labels" else 0
            batch[name] = _padded(values, fill)
            if name == "input_ids":
                mask = _padded([torch.ones_like(value) for value in values], 0)
                if takes_any or "attention_mask" in parameters:
                    batch["attention_mask"] = mask
        return batch

    return collate


def _padded(values: list[Tensor], fill: int) -> Tensor:
    if values[0].ndim == 0:
        return torch.stack(values)
    longest = max(value.shape[-1] for value in values)
    padded = [nn.functional.pad(v, (0, longest - v.shape[-1]), value=fill) for v in values]
    return torch.stack(padded)
