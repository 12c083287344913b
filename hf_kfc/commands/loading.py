"""Models and tokenizers by folder, or by name on the Hub; nothing of theirs is run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.peft_utils import find_adapter_config_file

from ..errors import ConsolidationError, HfKfcError
from ..hub import split_revision
from .plugins import load_plugins

__all__ = ["load_config", "load_model", "load_tokenizer", "loading", "register_model"]

_MOST = {"layer": 4096, "label": 2**20}
"""What a configuration may count, by what its field's name holds: each takes time and memory."""
_MODELS: dict[str, type[PreTrainedModel]] = {}


def register_model(kind: type[PreTrainedModel]) -> None:
    """Make a class of models known to the commands that transformers does not have."""
    _MODELS[kind.__name__] = kind


@contextmanager
def loading(what: str, advice: str, kind: type[HfKfcError] = ConsolidationError) -> Iterator[None]:
    """Tell in one line what another library makes of files that anybody wrote, and the advice."""
    try:
        yield
    except HfKfcError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise kind(f"{what} cannot be loaded ({reason}); give {advice}") from error


def load_model(name: str, dtype: torch.dtype | str = "auto") -> PreTrainedModel:
    """Load a model as the class that saved it.

    Args:
        name: A folder, ``org/name`` or ``org/name@revision``.
        dtype: Of its parameters; by default as they were saved.

    Raises:
        ConsolidationError: It is missing or damaged, some of its weights are, or its class is in
            neither transformers nor a plugin.
    """
    left_out = load_plugins()
    path, revision = split_revision(name)
    safe: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
    where = "the folder that save_pretrained made, or the name of a Hub repository"
    with loading(f"model '{name}'", "; ".join([where, *left_out])):
        config = load_config(name)
        architecture = (config.architectures or ["none"])[0]
        kind = _MODELS.get(architecture) or getattr(transformers, architecture, None)
        if not (isinstance(kind, type) and issubclass(kind, PreTrainedModel)):
            raise ConsolidationError(
                f"model '{name}' is of class '{architecture}', which transformers does not have; "
                + "; ".join(["give a model of a class that it has", *left_out])
            )
        safe |= {"config": config, "dtype": dtype, "use_safetensors": True}
        found: Any = kind.from_pretrained(path, output_loading_info=True, **safe)
    model: PreTrainedModel = found[0]
    if missing := found[1]["missing_keys"]:
        raise ConsolidationError(
            f"model '{name}' has no weights for {', '.join(sorted(missing))}; save it whole"
        )
    return model


def load_config(name: str, token: str | None = None) -> PreTrainedConfig:
    """Load a model's configuration.

    Args:
        name: Of the model.
        token: Access token; by default the one logged in with.

    Raises:
        ConsolidationError: It would make more layers or labels than any model has, or is of a PEFT
            adapter.
        Exception: Whatever transformers makes of files that anybody wrote; see :func:`loading`.
    """
    path, revision = split_revision(name)
    place: dict[str, Any] = {"revision": revision, "token": token}
    try:
        _refuse_counts(PreTrainedConfig.get_config_dict(path, **place)[0], name)
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            path, trust_remote_code=False, **place
        )
    except (OSError, ValueError):
        with suppress(OSError):
            if find_adapter_config_file(path, **place) is not None:
                raise ConsolidationError(
                    f"'{name}' is a PEFT adapter and no whole model; merge it (merge_and_unload) "
                    "and save that with its tokenizer, or load it in Python"
                ) from None
        raise
    return config


def _refuse_counts(fields: dict[str, Any], name: str) -> None:
    """Refuse what would take for ever to make, before transformers makes it; nested parts too."""
    for field, value in fields.items():
        if isinstance(value, dict):
            _refuse_counts(value, name)
        for what, most in _MOST.items():
            if what in field and isinstance(value, int) and value > most:
                raise ConsolidationError(
                    f"model '{name}' cannot be loaded: its config.json says {field} = {value}, "
                    f"more than {most}; correct it"
                )


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer by a model's name.

    Raises:
        ConsolidationError: There is none, or it knows no words: transformers makes an empty one of
            a model's configuration.
    """
    load_plugins()  # a tokenizer's class is found by the model's configuration
    path, revision = split_revision(name)
    with loading(f"the tokenizer of '{name}'", "a folder or repository that has one"):
        with suppress(OSError):  # it need not have a model beside it
            _refuse_counts(PreTrainedConfig.get_config_dict(path, revision=revision)[0], name)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            path, revision=revision, trust_remote_code=False
        )
        if tokenizer.get_vocab().keys() <= set(tokenizer.all_special_tokens):
            raise ConsolidationError(f"'{name}' has no tokenizer's files; save its tokenizer there")
    return tokenizer
