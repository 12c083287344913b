"""Models with PEFT's adapters: what their parameters are called in a prior of the plain model."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConsolidationError
from ..priors import ConsolidationPrior
from .terms import LowRank

__all__ = ["Naming", "check_prior", "names_for"]


@dataclass(frozen=True)
class Naming:
    """How a prior's names are those of a model.

    Args:
        own: The model's name of each parameter, by the prior's.
        adapters: What is added to a weight, by the prior's name of it.
    """

    own: dict[str, str]
    adapters: dict[str, LowRank]


def names_for(model: nn.Module, prior: ConsolidationPrior) -> Naming:
    """Find the parameters that a prior speaks of.

    A prior of a plain model fits the same model with LoRA adapters: its curvature of a weight W is
    applied to what they add to it, s·B·A. A prior that was made of the model with its adapters
    goes by the names there.

    Args:
        model: Plain, PEFT's wrapper, or one with adapters in it (``model.add_adapter(...)``).
        prior: Of the same model, with or without adapters.

    Raises:
        ConsolidationError: It has adapters that do not add a plain B·A to a linear layer's weight.
    """
    own = {name: name for name, _ in model.named_parameters()}
    layers = _peft_layers(model)
    if not layers:
        return Naming(own, {})
    plain = _plain_names(model, layers)
    covered = prior.curvature.parameters.keys()
    if covered <= own.keys() and not covered <= plain.keys():
        return Naming(own, {})
    return Naming(plain, _adapters(model, layers))


def check_prior(prior: ConsolidationPrior, model: nn.Module) -> None:
    """Make sure that a prior can consolidate a model, which may have adapters.

    Args:
        prior: Made of the model, with or without adapters.
        model: The model to be trained.

    Raises:
        PriorError: See :meth:`ConsolidationPrior.check`; a weight that an adapter changes counts as
            trained.
        ConsolidationError: See :func:`names_for`.
    """
    naming = names_for(model, prior)
    parameters = dict(model.named_parameters())
    seen: dict[str, Tensor] = {name: parameters[own] for name, own in naming.own.items()}
    for name, adapter in naming.adapters.items():
        up, down = parameters[adapter.up], parameters[adapter.down]
        trained = up.requires_grad or down.requires_grad
        if trained:  # also where the weight itself is frozen, or another module's
            size = (len(up), down.shape[1])
            shape = seen[name].shape if name in seen else torch.Size(size)
            seen[name] = torch.empty(shape, device="meta").requires_grad_()
    prior.check_parameters(seen, type(model).__name__)


def _peft_layers(model: nn.Module) -> dict[str, Any]:
    """PEFT's layers by name; whoever made a model with some has imported PEFT."""
    if "peft" not in sys.modules:
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: PLC0415 - an optional dependency
    from peft.utils.other import AuxiliaryTrainingWrapper  # noqa: PLC0415

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def _prefix(model: nn.Module) -> str:
    from peft import PeftModel  # noqa: PLC0415

    return "base_model.model." if isinstance(model, PeftModel) else ""


def _plain_names(model: nn.Module, layers: dict[str, Any]) -> dict[str, str]:
    """The model's names by those that the parameters have without PEFT; others are left out."""
    prefix, names = _prefix(model), dict[str, str]()
    for name, _ in model.named_parameters():
        path = next((path for path in layers if name.startswith(f"{path}.")), None)
        if path is None:
            names[name.removeprefix(prefix)] = name
            continue
        inner = ["base_layer", *(f"modules_to_save.{a}" for a in layers[path].active_adapters)]
        for part in inner:
            if name.startswith(f"{path}.{part}."):
                plain = name.replace(f"{path}.{part}.", f"{path}.", 1)
                names[plain.removeprefix(prefix)] = name
    return names


def _adapters(model: nn.Module, layers: dict[str, Any]) -> dict[str, LowRank]:
    from peft.utils.other import ModulesToSaveWrapper  # noqa: PLC0415

    prefix, adapters = _prefix(model), dict[str, LowRank]()
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    for path, layer in layers.items():
        if isinstance(layer, ModulesToSaveWrapper):
            continue
        if problem := _problem(layer, uses):
            raise ConsolidationError(
                f"the adapter of {path.removeprefix(prefix)} {problem}, which the penalty cannot "
                "follow; use one plain LoRA adapter of linear layers"
            )
        for adapter in layer.active_adapters:
            if adapter in layer.lora_A:
                adapters[f"{path.removeprefix(prefix)}.weight"] = LowRank(
                    down=f"{path}.lora_A.{adapter}.weight",
                    up=f"{path}.lora_B.{adapter}.weight",
                    scale=float(layer.scaling[adapter]),
                    inputs_are_rows=layer.fan_in_fan_out,
                )
    return adapters


def _problem(layer: Any, uses: Counter[int]) -> str | None:
    """Say why a layer's weight is not W + s·B·A."""
    from peft.tuners.lora import Linear  # noqa: PLC0415

    if type(layer) is not Linear:
        return f"is a {type(layer).__module__.split('.')[-2]} {type(layer).__name__}"
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    variants = [type(layer.lora_variant[a]).__name__ for a in active if a in layer.lora_variant]
    is_shared = bool(active) and uses[id(layer.get_base_layer().weight)] > 1
    found = {
        f"is one of {len(active)} active ones": len(active) > 1,
        "is merged into the weight": layer.merged,
        "is disabled": layer.disable_adapters,
        f"is a variant of LoRA ({', '.join(variants)})": variants,
        "has a bias": any(layer.lora_bias[name] for name in active),
        "is of a weight that another module shares": is_shared,
    }
    return next((problem for problem, is_there in found.items() if is_there), None)
