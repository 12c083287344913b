"""Models by folder, or by name in the Hub."""

from __future__ import annotations

from typing import Any

import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedModel

from ..chain import split_revision
from ..errors import ConsolidationError
from ..ranking import CnnForMultipleChoice

__all__ = ["load_model"]


def load_model(name: str) -> PreTrainedModel:
    """Load a model as the class that saved it, without running anything that comes with it.

    Args:
        name: A folder, ``org/name`` or ``org/name@revision``.

    Raises:
        ConsolidationError: It is missing or damaged, some of its weights are, or its class is in
            neither transformers nor this library.
    """
    path, revision = split_revision(name)
    safe: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(path, **safe)
        kind = _class_of(name, (config.architectures or ["none"])[0])
        found: Any = kind.from_pretrained(
            path, config=config, use_safetensors=True, output_loading_info=True, **safe
        )
    except ConsolidationError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConsolidationError(
            f"model '{name}' cannot be loaded ({str(error).strip()}); give the folder that "
            "save_pretrained made, or the name of a Hub repository"
        ) from None
    model: PreTrainedModel = found[0]
    if missing := found[1]["missing_keys"]:
        raise ConsolidationError(
            f"model '{name}' has no weights for {', '.join(sorted(missing))}; save it whole"
        )
    return model


def _class_of(name: str, architecture: str) -> type[PreTrainedModel]:
    ours = {kind.__name__: kind for kind in (CnnForMultipleChoice,)}
    kind = ours.get(architecture) or getattr(transformers, architecture, None)
    if isinstance(kind, type) and issubclass(kind, PreTrainedModel):
        return kind
    raise ConsolidationError(
        f"model '{name}' is of class '{architecture}', which transformers does not have; give a "
        "model of a class that it has"
    )
