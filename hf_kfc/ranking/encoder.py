"""Pretrained encoders as candidate rankers."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForMultipleChoice, PreTrainedModel

from ..errors import ConsolidationError

# Registers the CNN, so that a saved one loads like any other model.
from . import cnn  # noqa: F401

__all__ = ["load_ranker"]


def load_ranker(name_or_path: str | Path, *, num_layers: int | None = None) -> PreTrainedModel:
    """Load a model with a multiple-choice head, or put a new head on a pretrained encoder.

    Args:
        name_or_path: A folder or the name of a Hub repository; a saved
            :class:`~hf_kfc.ranking.cnn.CnnForMultipleChoice` too.
        num_layers: Keep only the first layers, this many; by default all.

    Returns:
        The model, in evaluation mode and in float32 whatever it was saved in: small steps are lost
        on weights of 16 bits. For 16-bit arithmetic set ``bf16`` in the training arguments.

    Raises:
        ConsolidationError: The model has no layers to choose from, or fewer than ``num_layers``.

    Example:
        >>> model = load_ranker("google-bert/bert-base-uncased", num_layers=3)  # doctest: +SKIP
    """
    config = AutoConfig.from_pretrained(name_or_path)
    if num_layers is not None:
        available = getattr(config, "num_hidden_layers", None)
        if available is None:
            raise ConsolidationError(
                f"The {config.model_type} model {name_or_path} has no num_hidden_layers to set to "
                f"{num_layers}; leave num_layers out."
            )
        if not 1 <= num_layers <= available:
            raise ConsolidationError(
                f"num_layers is {num_layers}, but the {config.model_type} model {name_or_path} has "
                f"{available} layers; choose from 1 to {available}."
            )
        config.num_hidden_layers = num_layers
        if getattr(config, "layer_types", None) is not None:
            config.layer_types = config.layer_types[:num_layers]
    model: PreTrainedModel = AutoModelForMultipleChoice.from_pretrained(
        name_or_path, config=config, dtype=torch.float32
    )
    return model
