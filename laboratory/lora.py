"""LoRA as a control: a low-rank update of every layer, learnt alone and then merged."""

from __future__ import annotations

from typing import cast

from transformers import PreTrainedModel

from hf_kfc.curvature import find_layers
from hf_kfc.errors import ConsolidationError

__all__ = ["add_lora", "merge_lora"]


def add_lora(model: PreTrainedModel, rank: int) -> PreTrainedModel:
    """Freeze a model and put a trainable update B·A of low rank beside every layer's weight.

    W + (α/r)·B·A with α = 2r (Hu et al. 2021, arXiv:2106.09685), in all linear layers,
    convolutions and embeddings; biases and layer norms stay as they are.

    Args:
        model: The model; PEFT changes it in place.
        rank: r, at least 1.

    Returns:
        The same model in PEFT's wrapper.

    Raises:
        ConsolidationError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - an extra of the recipes
    except ImportError:
        raise ConsolidationError(
            "method 'lora' needs PEFT; install it with pip install hf_kfc[recipes]"
        ) from None
    layers, _ = find_layers(model)
    matrices = [layer for layer in layers if len(next(iter(layer.shapes.values()))) > 1]
    targets = sorted(name for layer in matrices for name in layer.modules)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    return cast(PreTrainedModel, get_peft_model(model, config))


def merge_lora(model: PreTrainedModel) -> PreTrainedModel:
    """Add the update to the weights and return the model without PEFT's wrapper.

    Args:
        model: What :func:`add_lora` returned, trained.
    """
    merged: PreTrainedModel = model.merge_and_unload()  # type: ignore[operator]
    return merged.requires_grad_(True)
