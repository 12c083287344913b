"""Which rule a module has."""

from __future__ import annotations

from collections.abc import Callable, Collection

from torch import nn
from transformers.pytorch_utils import Conv1D

from ...errors import CurvatureError
from .base import LayerRule
from .convolution import ConvRule
from .embedding import EmbeddingRule, TiedEmbeddingRule
from .linear import BiasRule, Gpt2Conv1dRule, LinearRule, ReadLinearRule
from .normalisation import ChannelNormRule, GainRule

__all__ = ["BIAS", "RULES", "find_rule", "register_rule", "rule_of"]


RULES: dict[type[nn.Module], LayerRule] = {
    nn.Linear: LinearRule(),
    Conv1D: Gpt2Conv1dRule(),
    nn.Conv1d: ConvRule(),
    nn.Conv2d: ConvRule(),
    nn.Conv3d: ConvRule(),
    nn.Embedding: EmbeddingRule(),
    nn.LayerNorm: GainRule(),
    nn.GroupNorm: ChannelNormRule(),
    nn.BatchNorm1d: ChannelNormRule(),
    nn.BatchNorm2d: ChannelNormRule(),
    nn.BatchNorm3d: ChannelNormRule(),
}
"""Rules by class; a subclass has that of its parent, if a first batch's gradient fits it."""
BIAS = BiasRule()
_GAIN = GainRule()
_READ = ReadLinearRule()
_TIED = TiedEmbeddingRule()


def register_rule(
    module_class: type[nn.Module],
) -> Callable[[type[LayerRule]], type[LayerRule]]:
    """Give a module class a rule; to be used as a decorator of the rule's class.

    A rule that was there is replaced. Subclasses have it too, if it fits their gradient.

    Args:
        module_class: The class of the modules.

    Raises:
        CurvatureError: The class is none of modules.
    """
    if not (isinstance(module_class, type) and issubclass(module_class, nn.Module)):
        raise CurvatureError(f"{module_class!r} is no class of torch modules; give one")

    def register(rule_class: type[LayerRule]) -> type[LayerRule]:
        RULES[module_class] = rule_class()
        return rule_class

    return register


def find_rule(modules: Collection[nn.Module]) -> LayerRule | None:
    """Return the rule of the modules that share a weight, usually a single one; None if none has.

    Args:
        modules: All that own the weight.
    """
    rules = {rule_of(module) for module in modules}
    if rules == {RULES[nn.Embedding], RULES[nn.Linear]}:
        return _TIED
    return None if len(rules) > 1 or len({type(m) for m in modules}) > 1 else rules.pop()


def rule_of(module: nn.Module) -> LayerRule | None:
    """Return the rule of a module's class or of its nearest parent that has one.

    A class that overrides ``forward`` may compute something else; then the gradient of a first
    batch is not what the rule makes of it. So it is with normalisation layers and linear weights
    that are told by their names alone.

    Args:
        module: The module.
    """
    kind = type(module)
    for parent in kind.__mro__:
        if parent in RULES:
            return RULES[parent].of(module)
    owned = dict(module.named_parameters())
    if kind.__name__.endswith("Norm") and {"weight"} <= owned.keys() <= {"weight", "bias"}:
        return _GAIN
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    return _READ if weight is not None and weight.ndim == 2 else None
