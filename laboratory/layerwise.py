"""Learning rates that fall from the head downwards."""

from __future__ import annotations

from collections import defaultdict

from torch import nn
from torch.optim import Optimizer

from hf_kfc.errors import ConsolidationError

__all__ = ["layer_depths", "split_by_depth"]


def layer_depths(model: nn.Module) -> dict[str, int]:
    """Return each parameter's layer, counted from the head.

    Without the prefix of the base model (``bert.``), a parameter's layer is its path up to the
    index of the outermost list that it goes through (``encoder.layer.3``) or else the first
    component of its path (``embeddings``). Layers are in the order in which they are registered;
    the last one is the head. BERT: embeddings < layer 0 < layer 1 … < pooler < classifier.

    Args:
        model: The model, not wrapped.

    Returns:
        By parameter name ℓ, 0 for the head; a parameter of several names has its first one only.
    """
    layers = {name: _layer(model, name) for name, _ in model.named_parameters()}
    order = list(dict.fromkeys(layers.values()))
    depths = {layer: depth for depth, layer in enumerate(reversed(order))}
    return {name: depths[layer] for name, layer in layers.items()}


def _layer(model: nn.Module, name: str) -> str:
    components, module = name.split("."), model
    for index, component in enumerate(components[:-1]):
        if isinstance(module, nn.ModuleList):
            return ".".join(components[: index + 1])
        module = module.get_submodule(component)
    if hasattr(model, "peft_config"):
        name = name.removeprefix("base_model.model.")  # PEFT's wrappers
    return name.removeprefix(f"{getattr(model, 'base_model_prefix', '')}.").split(".")[0]


def split_by_depth(optimizer: Optimizer, model: nn.Module, decay: float) -> None:
    """Give each layer its own learning rate η_ℓ = η·γ^ℓ, in parameter groups of the optimizer.

    Discriminative fine-tuning (Howard & Ruder 2018, ULMFiT: η_{ℓ-1} = η_ℓ / 2.6, with ℓ counted
    from below), the learning-rate control of McInerney et al. 2021. Lower layers, which hold what
    tasks share, move less. Everything else of a group (weight decay) stays as it is. To be called
    before a scheduler is made: that keeps the rates it finds, and scales each.

    Args:
        optimizer: As the Trainer makes it, of this model's parameters.
        model: The model, not wrapped.
        decay: γ.

    Raises:
        ConsolidationError: The optimizer has parameters that are not the model's.
    """
    depths = layer_depths(model)
    by_parameter = {id(p): depths[name] for name, p in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        members = defaultdict(list)
        for parameter in group["params"]:
            if id(parameter) not in by_parameter:
                raise ConsolidationError(
                    f"{type(optimizer).__name__} has parameters that are not the model's own, so "
                    "that layers cannot have learning rates; choose another `optim` or set "
                    "layer_decay=1"
                )
            members[by_parameter[id(parameter)]].append(parameter)
        # The head first: the Trainer logs the rate of the first group.
        groups += [
            {**group, "params": members[depth], "lr": group["lr"] * decay**depth}
            for depth in sorted(members)
        ]
    optimizer.param_groups[:] = groups
