"""Models with PEFT's adapters: what their parameters are called in a prior of the plain model."""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import nn

from ..errors import ConsolidationError
from ..priors import ConsolidationPrior

__all__ = ["COMPILED", "LowRank", "Naming", "names_for", "plain_name"]

COMPILED = "_orig_mod."
"""What ``torch.compile`` puts into names."""
_WRAPPERS = re.compile(
    r"^base_model\.model\.|(?<![^.])(_orig_mod|base_layer|modules_to_save\.[^.]+)\."
)


class LowRank(NamedTuple):
    """An adapter that adds s·B·A to a weight (LoRA, Hu et al. 2021, arXiv:2106.09685).

    Args:
        down: The model's name of A, shape [r, p].
        up: The model's name of B, shape [q, r].
        scale: s.
        inputs_are_rows: Whether the weight is [p, q], so that (B·A)ᵀ is added.
    """

    down: str
    up: str
    scale: float
    inputs_are_rows: bool


@dataclass(frozen=True)
class Naming:
    """How a prior's names are those of a model.

    Args:
        own: The model's name of each parameter, by the prior's.
        adapters: What is added to a weight, by the prior's name of it.
        apart: The parameter that was tied to one and is no longer, by the prior's name of that.
    """

    own: dict[str, str]
    adapters: dict[str, LowRank]
    apart: dict[str, str]


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
    own = {name.replace(COMPILED, ""): name for name, _ in model.named_parameters()}
    _refuse_prompts(model)
    layers = _peft_layers(model)
    if not layers:
        return Naming(own, {}, {})
    plain = _plain_names(model, layers)
    covered = prior.curvature.parameters.keys()
    if covered <= own.keys() and not covered <= plain.keys():
        return Naming(own, {}, {})
    return Naming(plain, _adapters(model, layers), _untied(model, layers))


def plain_name(name: str) -> str:
    """Return the name of a parameter, a buffer or a module without the parts of what wraps it."""
    return _WRAPPERS.sub("", name)


def _peft_layers(model: nn.Module) -> dict[str, Any]:
    """PEFT's layers by name; whoever made a model with some has imported PEFT."""
    if "peft" not in sys.modules:
        return {}
    from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: PLC0415 - an optional dependency
    from peft.utils.other import AuxiliaryTrainingWrapper  # noqa: PLC0415

    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def _refuse_prompts(model: nn.Module) -> None:
    config: Any = getattr(model, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        raise ConsolidationError(
            f"{config.peft_type.value.replace('_', ' ').lower()} trains vectors beside the input "
            "and no weight that a prior knows, so the penalty cannot hold the old task; use LoRA, "
            "or train without priors and keep the old task's prompt"
        )


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


def _untied(model: nn.Module, layers: dict[str, Any]) -> dict[str, str]:
    """Weights of which PEFT trains copies that not all modules use which had them before."""
    from peft.utils.other import ModulesToSaveWrapper  # noqa: PLC0415

    prefix, owners, untied = _prefix(model), defaultdict[int, list[str]](list), dict[str, str]()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)].append(name.replace(".original_module.", "."))
    for path, layer in layers.items():
        for adapter in layer.active_adapters if isinstance(layer, ModulesToSaveWrapper) else ():
            copies = dict(layer.modules_to_save[adapter].named_parameters())
            for name, before in layer.original_module.named_parameters():
                own, uses = f"{path}.{name}", owners[id(before)]
                if len(owners[id(copies[name])]) < len(uses):
                    other = next(use for use in uses if use != own)
                    untied[own.removeprefix(prefix)] = other.removeprefix(prefix)
    return untied


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
