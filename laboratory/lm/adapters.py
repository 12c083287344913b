"""Rivals of PEFT that learn beside the parameters, and are merged when they have learnt."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel

from hf_kfc.errors import ConsolidationError
from hf_kfc.priors import ConsolidationPrior

__all__ = ["ADAPTERS", "with_adapter"]

ADAPTERS = ("lora", "corda", "osf")
"""Low-rank updates (Hu et al. 2021); these along the directions that old inputs use least (CorDA in
its knowledge-preserved mode, Yang et al. 2024); the smallest singular values of each matrix with
their vectors, orthogonal to the others (OSF, Nayak et al. 2025)."""


def with_adapter(
    model: PreTrainedModel, kind: str, size: float, prior: ConsolidationPrior | None = None
) -> Any:
    """Wrap a model so that an adapter on all of its linear layers but the head learns alone.

    Args:
        model: Changed in place.
        kind: One of :data:`ADAPTERS`.
        size: Rank of the update; for ``osf``, the share of singular directions that is kept.
        prior: For ``corda``: whose second moments of inputs are of old texts.

    Returns:
        A model of PEFT; its ``merge_and_unload`` returns the model with what was learnt.

    Raises:
        ConsolidationError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, OSFConfig, get_peft_model  # noqa: PLC0415 - of an extra
        from peft.tuners.lora.config import CordaConfig  # noqa: PLC0415
        from peft.tuners.lora.corda import preprocess_corda  # noqa: PLC0415
    except ImportError:
        raise ConsolidationError(
            f"method '{kind}' needs PEFT; install it with pip install hf_kfc[recipes]"
        ) from None
    inner = cast(nn.Module, model)
    names = [name for name, layer in inner.named_modules() if isinstance(layer, nn.Linear)]
    head = cast(Any, model).get_output_embeddings()
    targets = [name for name in names if inner.get_submodule(name) is not head]
    if kind == "osf":
        return get_peft_model(model, OSFConfig(target_modules=targets, effective_rank=float(size)))
    rank = int(size)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    if kind == "corda":
        assert prior is not None
        with TemporaryDirectory() as folder:
            file = Path(folder) / "covariances.pt"
            prior.export_covariances(file)
            config.init_lora_weights, config.lora_alpha = "corda", rank  # as in its paper
            config.corda_config = CordaConfig(corda_method="kpm", covariance_file=str(file))
            preprocess_corda(inner, config)
    return get_peft_model(model, config)
