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
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

__all__ = ["TASKS", "Architecture", "architectures", "build", "examples_for"]

VOCABULARY = 40
LABELS = 3
LENGTHS = (7, 4, 6, 5)
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

_SIZES: dict[str, Any] = {
    # widths: 16, two heads of 8
    **dict.fromkeys(
        (
            "hidden_size",
            "d_model",
            "n_embd",
            "dim",
            "embed_dim",
            "embedding_size",
            "emb_dim",
            "encoder_hidden_size",
            "word_embed_proj_dim",
            "hidden_dim",
            "proj_dim",
            "model_dim",
            "hidden_size_per_layer_input",
            "attention_hidden_size",
            "rotary_dim",
            "projection_dim",
            "output_hidden_size",
            "conv_dim_base",
            "width",
            "lru_width",
            "decoder_hidden_size",
        ),
        16,
    ),
    **dict.fromkeys(
        (
            "intermediate_size",
            "ffn_dim",
            "d_ff",
            "n_inner",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
            "ffn_hidden_size",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "intermediate_size_mlp",
            "expert_intermediate_size",
            "dense_intermediate_size",
            "shared_intermediate_size",
            "moe_ffn_hidden_size",
            "mlp_dim",
            "d_inner",
            "inner_dim",
            "feed_forward_hidden_size",
        ),
        24,
    ),
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "n_layer",
            "n_layers",
            "num_layers",
            "encoder_layers",
            "decoder_layers",
            "num_decoder_layers",
            "num_encoder_layers",
            "depth",
        ),
        2,
    ),
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "encoder_attention_heads",
            "decoder_attention_heads",
            "num_encoder_attention_heads",
            "num_decoder_attention_heads",
            "linear_num_key_heads",
            "linear_num_value_heads",
            "mamba_n_heads",
        ),
        2,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "multi_query_group_num"), 1),
    **dict.fromkeys(
        (
            "head_dim",
            "d_kv",
            "qk_nope_head_dim",
            "v_head_dim",
            "attention_head_size",
            "attention_head_dim",
            "linear_key_head_dim",
            "linear_value_head_dim",
            "global_head_dim",
            "mamba_d_head",
        ),
        8,
    ),
    "qk_rope_head_dim": 4,
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank"), 8),
    **dict.fromkeys(
        (
            "num_local_experts",
            "num_experts",
            "n_routed_experts",
            "moe_num_experts",
            "num_routed_experts",
        ),
        4,
    ),
    **dict.fromkeys(
        (
            "num_experts_per_tok",
            "num_experts_per_token",
            "moe_topk",
            "moe_k",
            "num_selected_experts",
            "num_experts_per_topk",
            "moe_top_k",
        ),
        2,
    ),
    **dict.fromkeys(
        (
            "n_group",
            "topk_group",
            "n_shared_experts",
            "num_shared_experts",
            "first_k_dense_replace",
        ),
        1,
    ),
    **dict.fromkeys(
        (
            "vocab_size",
            "src_vocab_size",
            "tgt_vocab_size",
            "vocab_size_or_config",
            "vocab_size_per_layer_input",
            "decoder_vocab_size",
        ),
        VOCABULARY,
    ),
    **dict.fromkeys(
        (
            "max_position_embeddings",
            "n_positions",
            "n_ctx",
            "max_seq_len",
            "max_source_positions",
            "max_target_positions",
            "seq_length",
            "max_encoder_position_embeddings",
            "max_decoder_position_embeddings",
            "max_sequence_length",
            "max_seqlen",
        ),
        64,
    ),
    **dict.fromkeys(("state_size", "mamba_d_state", "ssm_state_size"), 4),
    **dict.fromkeys(
        (
            "sliding_window",
            "attention_window_size",
            "local_attention",
            "window_size",
            "attention_chunk_size",
            "chunk_size",
        ),
        8,
    ),
    **dict.fromkeys(("pad_token_id", "decoder_start_token_id"), 0),
    "bos_token_id": 1,
    **dict.fromkeys(("eos_token_id", "forced_eos_token_id"), 2),
    **dict.fromkeys(("image_size",), 16),
    **dict.fromkeys(("patch_size",), 4),
    "time_step_rank": 4,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_topk": 4,
    "num_nextn_predict_layers": 0,
}
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
        if name in _SIZES and isinstance(value, int | None) and not isinstance(value, bool):
            if value is None and name not in ("pad_token_id", "bos_token_id", "eos_token_id"):
                continue
            changes[name] = _SIZES[name]
        elif isinstance(value, float) and any(part in name for part in _NO_DROPOUT):
            changes[name] = 0.0
    changes |= {name: value for name, value in more.items()}
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
    config = _shrunk(config_class, {**labels, **_SPECIAL.get(architecture.model_type, {})})
    if hasattr(config, "decoder_start_token_id") or config.is_encoder_decoder:
        config.decoder_start_token_id = 0  # some defaults leave it to the checkpoint
    config._attn_implementation = "eager"
    with torch.device("meta"):
        size = sum(p.numel() for p in kind(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"it has {size:,} parameters")
    torch.manual_seed(0)
    model: PreTrainedModel = kind(config)
    return model.eval()


_LATENT = {"num_key_value_heads": 2}  # latent attention has no groups
_SPECIAL: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            "axk1",
            "axk2",
            "bailing_hybrid",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "dots1",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "minicpm3",
            "youtu",
            "mistral4",
            "esmc",
            "dots3_note",
        ),
        _LATENT,
    ),
    "xmod": {"default_language": "en_XX"},
    "diffllama": _LATENT,
    "reformer": {"axial_pos_embds_dim": (8, 8), "axial_pos_shape": (8, 8), "is_decoder": True},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4, "n_head": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "nemotron": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "lilt": {"channel_shrink_ratio": 2},
    "mamba2": {"expand": 2, "num_heads": 4, "head_dim": 8, "n_groups": 1},
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_expand": 2, "mamba_n_groups": 1},
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_expand": 2},
    "falcon_h1": {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_ssm": 32, "mamba_n_groups": 1},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "use_mamba_kernels": False,
    },
    "zaya": {"num_experts_per_tok": 1},
    "roc_bert": {
        "enable_pronunciation": False,
        "enable_shape": False,
        "pronunciation_vocab_size": 8,
        "shape_vocab_size": 8,
    },
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 16},
    "layoutlmv3": {"visual_embed": False, "coordinate_size": 4, "shape_size": 2},
    "esm": {"mask_token_id": 3, "position_embedding_type": "absolute"},
    "longformer": {"attention_window": 8},
    "led": {"attention_window": 8, "max_encoder_position_embeddings": 64},
    # images
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "convnextv2": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "regnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 4},
    "swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2},
    "swinv2": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 2},
    "poolformer": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "pvt": {
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
        "image_size": 32,
    },
    "segformer": {
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
        "decoder_hidden_size": 16,
    },
    "levit": {
        "hidden_sizes": [16, 16, 16],
        "num_attention_heads": [2, 2, 2],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
        "image_size": 64,
    },
    "mobilevit": {
        "hidden_sizes": [16, 16, 16],
        "neck_hidden_sizes": [8, 8, 8, 8, 8, 8, 16],
        "image_size": 64,
        "num_attention_heads": 2,
    },
    "focalnet": {
        "embed_dim": 8,
        "depths": [1, 1],
        "focal_levels": [1, 1],
        "focal_windows": [3, 3],
        "hidden_sizes": [8, 16],
    },
    "dinat": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]},
    "cvt": {"embed_dim": [8, 8, 16], "num_heads": [1, 1, 2], "depth": [1, 1, 1]},
    "efficientnet": {"image_size": 32, "width_coefficient": 0.1, "depth_coefficient": 0.1},
    "bit": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_groups": 2},
    "van": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "image_size": 32},
    "vit_msn": {},
    "beit": {"use_relative_position_bias": True},
    # speech
    **dict.fromkeys(
        (
            "wav2vec2",
            "hubert",
            "wavlm",
            "unispeech",
            "unispeech-sat",
            "data2vec-audio",
            "sew",
            "sew-d",
            "wav2vec2-conformer",
        ),
        {
            "conv_dim": (8, 8),
            "conv_stride": (4, 4),
            "conv_kernel": (4, 4),
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 4,
            "num_conv_pos_embedding_groups": 2,
            "feat_extract_norm": "layer",
            "apply_spec_augment": False,
            "mask_time_prob": 0.0,
            "ctc_loss_reduction": "mean",
            "ctc_zero_infinity": True,
        },
    ),
}


def examples_for(architecture: Architecture, model: nn.Module) -> list[dict[str, Tensor]]:
    """Make a handful of examples of uneven length, as tensors."""
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
    """Pad on the right, with an attention mask where the model takes one."""
    parameters = inspect.signature(model.forward).parameters

    def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = {}
        for name in rows[0]:
            values = [row[name] for row in rows]
            fill = -100 if name == "labels" else 0
            batch[name] = _padded(values, fill)
            if name == "input_ids":
                mask = _padded([torch.ones_like(value) for value in values], 0)
                if "attention_mask" in parameters:
                    batch["attention_mask"] = mask
        return batch

    return collate


def _padded(values: list[Tensor], fill: int) -> Tensor:
    if values[0].ndim == 0:
        return torch.stack(values)
    longest = max(value.shape[-1] for value in values)
    padded = [nn.functional.pad(v, (0, longest - v.shape[-1]), value=fill) for v in values]
    return torch.stack(padded)
