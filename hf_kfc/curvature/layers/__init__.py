"""One rule per kind of layer: how its inputs and output gradients become curvature.

Shapes: N examples, R positions (uses of the weight) per example, p inputs (bias included),
q outputs, V tokens. ``a`` are inputs, ``g`` gradients of the outputs.
"""

from .base import LayerRule, StackedRule
from .embedding import EmbeddingRule, TiedEmbeddingRule, tokens_of_examples
from .experts import ExpertsRule, find_experts_rule
from .linear import LinearRule
from .registry import BIAS, RULES, find_rule, register_rule, rule_of

__all__ = [
    "BIAS",
    "RULES",
    "EmbeddingRule",
    "ExpertsRule",
    "LayerRule",
    "LinearRule",
    "StackedRule",
    "TiedEmbeddingRule",
    "find_experts_rule",
    "find_rule",
    "register_rule",
    "rule_of",
    "tokens_of_examples",
]
