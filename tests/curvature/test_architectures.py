"""Architectures of transformers as they come: no argument, every parameter covered, all exact.

A sample runs always; ``HF_KFC_ALL_ARCHITECTURES=1`` runs the whole list.
"""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tiny.curvatures import assert_equal_matrices, images
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate
from transformers import PreTrainedModel

from hf_kfc.curvature import (
    Curvature,
    CurvatureArguments,
    estimate_curvature,
    per_example_gradients,
)

TEXT = {
    "vocab_size": 60,
    "hidden_size": 16,
    "d_model": 16,
    "n_embd": 16,
    "dim": 16,
    "embedding_size": 16,
    "intermediate_size": 24,
    "ffn_dim": 24,
    "d_ff": 24,
    "d_kv": 8,
    "hidden_dim": 24,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "num_hidden_layers": 2,
    "n_layer": 2,
    "n_layers": 2,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "num_attention_heads": 2,
    "n_head": 2,
    "n_heads": 2,
    "num_heads": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "num_key_value_heads": 1,
    "state_size": 4,
    "num_local_experts": 2,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8,
    "attention_window": 4,
    "max_position_embeddings": 32,
    "n_positions": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "num_labels": 3,
}
IMAGE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
    "embed_dim": 8,
    "embedding_size": 8,
    "num_labels": 3,
}
KINDS: dict[str, tuple[str, ...]] = {
    "next": (
        "GPT2LMHeadModel",
        "LlamaForCausalLM",
        "MixtralForCausalLM",
        "FalconForCausalLM",
        "MambaForCausalLM",
        "OPTForCausalLM",
        "BloomForCausalLM",
        "GPTNeoXForCausalLM",
        "PhiForCausalLM",
        "Gemma2ForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen2MoeForCausalLM",
        "BioGptForCausalLM",
        "OlmoForCausalLM",
        "CohereForCausalLM",
        "MptForCausalLM",
        "MistralForCausalLM",
        "RwkvForCausalLM",
    ),
    "masked": (
        "BertForMaskedLM",
        "MPNetForMaskedLM",
        "RobertaForMaskedLM",
        "DistilBertForMaskedLM",
        "ElectraForMaskedLM",
        "DebertaV2ForMaskedLM",
        "ModernBertForMaskedLM",
        "LongformerForMaskedLM",
        "CamembertForMaskedLM",
        "AlbertForMaskedLM",
    ),
    "tokens": (
        "BioGptForTokenClassification",
        "BertForTokenClassification",
        "XLMRobertaForTokenClassification",
        "MPNetForTokenClassification",
    ),
    "texts": (
        "BertForSequenceClassification",
        "RobertaForSequenceClassification",
        "DebertaV2ForSequenceClassification",
        "GPT2ForSequenceClassification",
        "LlamaForSequenceClassification",
    ),
    "numbers": (
        "DistilBertForSequenceClassification",
        "ElectraForSequenceClassification",
        "OPTForSequenceClassification",
        "BertForSequenceClassification",
        "GPT2ForSequenceClassification",
        "ModernBertForSequenceClassification",
    ),
    "spans": (
        "DistilBertForQuestionAnswering",
        "T5ForQuestionAnswering",
        "GPT2ForQuestionAnswering",
        "BertForQuestionAnswering",
        "RobertaForQuestionAnswering",
        "ElectraForQuestionAnswering",
        "DebertaV2ForQuestionAnswering",
        "MPNetForQuestionAnswering",
        "ModernBertForQuestionAnswering",
        "LlamaForQuestionAnswering",
        "BartForQuestionAnswering",
    ),
    "answers": (
        "T5ForConditionalGeneration",
        "BartForConditionalGeneration",
        "MBartForConditionalGeneration",
        "PegasusForConditionalGeneration",
        "MarianMTModel",
        "M2M100ForConditionalGeneration",
        "BlenderbotForConditionalGeneration",
        "LEDForConditionalGeneration",
    ),
    "images": (
        "ViTForImageClassification",
        "ResNetForImageClassification",
        "ConvNextForImageClassification",
        "DeiTForImageClassification",
        "ConvNextV2ForImageClassification",
        "RegNetForImageClassification",
        "BeitForImageClassification",
        "Dinov2ForImageClassification",
        "PoolFormerForImageClassification",
        "FocalNetForImageClassification",
    ),
}
SAMPLED = 3
EVERY = bool(os.environ.get("HF_KFC_ALL_ARCHITECTURES"))
CASES = [
    (kind, name) for kind, names in KINDS.items() for name in (names if EVERY else names[:SAMPLED])
]


def build(kind: str, name: str) -> PreTrainedModel:
    """A model of a few thousand parameters."""
    made: Any = getattr(transformers, name)
    default = made.config_class()
    wanted = IMAGE if kind == "images" else TEXT
    settings = {key: value for key, value in wanted.items() if hasattr(default, key)}
    if kind == "images":
        for key, value in (("depths", 1), ("hidden_sizes", 8)):
            if hasattr(default, key):
                settings[key] = [value] * len(getattr(default, key))
    if getattr(default, "is_encoder_decoder", False):
        settings["decoder_start_token_id"] = 1
    if kind in ("numbers", "spans"):
        settings["num_labels"] = {"numbers": 1, "spans": 2}[kind]
    model: PreTrainedModel = made(made.config_class(**settings)).eval()
    assert model.num_parameters() < 3_000_000
    return model


def examples(kind: str) -> tuple[list[Any], Callable[[list[Any]], dict[str, Tensor]]]:
    if kind == "images":
        labels = [torch.tensor(number) for number in range(3)]
        return [
            {"pixel_values": torch.randn(3, 32, 32), "labels": y} for y in labels
        ], default_collate
    rows = []
    for number, length in enumerate((5, 7, 6)):
        ids = torch.randint(5, 59, (length,))
        labels = {
            "texts": torch.tensor(number),
            "numbers": torch.randn(()),
            "spans": torch.randint(0, length, (2,)),
            "tokens": torch.randint(0, 3, (length,)),
        }
        rows.append((ids, labels.get(kind, ids)))

    def collate(batch: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        ids, labels = zip(*batch, strict=True)
        made = {
            "input_ids": pad_sequence(list(ids), True, 0),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], True, 0),
        }
        if kind == "spans":
            start, end = torch.stack(labels).unbind(1)
            return made | {"start_positions": start, "end_positions": end}
        by_example = kind in ("texts", "numbers")
        return made | {
            "labels": torch.stack(labels) if by_example else pad_sequence(list(labels), True, -100)
        }

    return rows, collate


@pytest.fixture(autouse=True)
def float32() -> None:
    torch.set_default_dtype(torch.float32)  # grouped products of experts know no float64


@pytest.mark.parametrize(("kind", "name"), CASES, ids=["-".join(case) for case in CASES])
def test_every_parameter_is_covered_exactly(kind: str, name: str) -> None:
    model = build(kind, name)
    data, collate = examples(kind)

    def run(curvature: str, size: int) -> Curvature:
        arguments = CurvatureArguments(curvature=curvature, curvature_batch_size=size)
        return estimate_curvature(model, data, collate, arguments)

    diagonal = run("diagonal", 3)
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert diagonal.parameters.keys() == trainable.keys()
    gradients = per_example_gradients(model, data, collate)
    largest = max(float(rows.abs().max()) for rows in gradients.values())
    for block in diagonal.blocks:
        for parameter, found in block.split(block.operator.state()["diagonal"]).items():
            expected = gradients[parameter].square().sum(0) / len(data)
            scale = max(float(expected.max()), 1e-10 * largest**2)
            assert float((found - expected).abs().max()) < 1e-3 * scale, parameter

    factors, again = run("kronecker", 2), run("kronecker", 3)
    assert factors.parameters.keys() == trainable.keys()
    assert any(block.operator.kind == "kronecker" for block in factors.blocks)
    used = {b.name for b in factors.blocks if float(b.operator.trace(b.shape)) > 1e-9 * largest**2}
    first, second = ({n: x for n, x in images(c).items() if n in used} for c in (factors, again))
    assert_equal_matrices(first, second, rtol=1e-3)
