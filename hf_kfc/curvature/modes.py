"""States that a model is in for a while: evaluating, frozen, without a cache, learning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["evaluating", "frozen", "learning", "without_cache"]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put all modules in evaluation mode, and each back in its own afterwards."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


@contextmanager
def learning(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let some parameters of a frozen model have gradients in the forward passes of the block.

    Args:
        parameters: Their ``requires_grad`` is False otherwise.
    """
    parameters = list(parameters)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode without trainable parameters; restore both afterwards.

    What was compiled in place runs as it was written: compiled code does not call hooks. A forward
    in which accelerate has put autocast, as Trainer does, is the model's own again. Nor does the
    model keep a cache (:func:`without_cache`).
    """
    forward, original = model.forward, vars(model).get("_original_forward")
    trainable = [p for p in model.parameters() if p.requires_grad]
    compiled = {m: m._compiled_call_impl for m in model.modules() if m._compiled_call_impl}
    for module in compiled:
        module._compiled_call_impl = None
    if original is not None:
        model.forward = original
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        with evaluating(model), without_cache(model):
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, call in compiled.items():
            module._compiled_call_impl = call
        if original is not None:
            model.forward = forward


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
    """Let a model keep no past keys, values or states, and leave its configs as they were.

    In evaluation mode most decoders fill a cache that nobody reads, and RWKV writes its states
    where autograd still needs them. A loss may note its ``problem_type`` in the config.

    Args:
        model: It and its parts may have a config.
    """
    found: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    kept = [
        (config, name, getattr(config, name))
        for config in {id(config): config for config in found}.values()
        for name in ("use_cache", "problem_type")
        if hasattr(config, name)
    ]
    for config, name, _ in kept:
        if name == "use_cache":
            config.use_cache = False
    try:
        yield
    finally:
        for config, name, value in kept:
            setattr(config, name, value)
