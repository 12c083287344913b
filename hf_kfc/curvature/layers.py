"""One rule per kind of layer: how its inputs and output gradients become curvature.

Shapes: N examples, R positions (uses of the weight) per example, p inputs (bias included),
q outputs, V tokens. ``a`` are inputs, ``g`` gradients of the outputs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from typing import ClassVar, overload

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from transformers.pytorch_utils import Conv1D
from typing_extensions import override

from ..curvature_arguments import Products
from ..errors import CurvatureError
from .blocks import Layout
from .moments import add_second_moment

__all__ = ["RULES", "LayerRule", "find_rule", "register_rule", "rule_of"]

_CHUNK = 2**25  # elements of per-example gradients held at once: 128 MiB in float32


class LayerRule(ABC):
    """What the estimator asks of one kind of layer.

    A rule for a module class of one's own says how the weight is laid out and how an input becomes
    rows; :func:`register_rule` makes it known. On a first batch the estimator compares the gradient
    that the rule makes of inputs and output gradients with autograd's, and refuses another one.

    Example:
        >>> class Doubling(nn.Module):  # z = 2 x W, the weight stored [in, out]
        ...     def __init__(self, inputs, outputs):
        ...         super().__init__()
        ...         self.kernel = nn.Parameter(torch.randn(inputs, outputs))
        ...     def forward(self, x):
        ...         return 2 * x @ self.kernel
        >>> @register_rule(Doubling)
        ... class DoublingRule(LayerRule):
        ...     layout = Layout.IN_OUT
        ...     names = ("kernel", "bias")
        ...     def features(self, module, x, examples):
        ...         return 2 * x.reshape(examples, -1, x.shape[-1])
    """

    layout: ClassVar[Layout]
    names: ClassVar[tuple[str, ...]] = ("weight", "bias")
    """What the module calls its weight and, if it may have one, the bias that is added to the
    output; no other parameter is covered."""
    beside: ClassVar[tuple[str, ...]] = ()
    """Parameters that the module may own too, and that are a block of their own."""
    has_factors: ClassVar[bool] = True
    """Whether the layer has Kronecker factors; without, its curvature is always diagonal."""
    diagonal_inputs: ClassVar[bool] = False
    """Whether A is diagonal and kept as a vector."""

    def refusal(self, module: nn.Module) -> str | None:
        """Say which setting of this module has no rule although its class has; None if all have."""
        return None

    def of(self, module: nn.Module) -> LayerRule:
        """Return the rule of a module with its settings, where the class has several."""
        return self

    def reading(self, module: nn.Module) -> tuple[object, ...]:
        """Return the settings that :meth:`inputs` depends on, to tell who shares an A."""
        return (self.has_bias(module),)

    def has_bias(self, module: nn.Module) -> bool:
        """Say whether the bias of a module is a part of its block."""
        return any(getattr(module, name, None) is not None for name in self.names[1:])

    @abstractmethod
    def features(self, module: nn.Module, x: Tensor, examples: int) -> Tensor:
        """Bring a layer's input to [N, R, p], without the constant 1 of the bias."""

    def inputs(self, module: nn.Module, x: Tensor, examples: int) -> Tensor:
        """Bring a layer's input to [N, R, p], the constant 1 of the bias last."""
        features = self.features(module, x, examples)
        if not self.has_bias(module):
            return features
        return torch.cat([features, features.new_ones(*features.shape[:-1], 1)], dim=-1)

    def outputs(self, module: nn.Module, g: Tensor, examples: int) -> Tensor:
        """Bring a layer's output, or its gradient, to [N, R, q]."""
        return g.reshape(examples, -1, g.shape[-1])

    def leading(self, module: nn.Module, output: Tensor) -> tuple[int, ...]:
        """Return the shape of an output without its features."""
        return tuple(output.shape[:-1])

    def add_input_moment(
        self, total: Tensor, features: Tensor, valid: Tensor, average: bool, products: Products
    ) -> None:
        """Add Σ a aᵀ over the positions that count, or over the per-example means of those.

        Args:
            total: Changed in place, [p, p] with the bias, or [p] if it is diagonal.
            features: Inputs without the constant 1 of the bias, [N, R, ...].
            valid: Which positions count [N, R].
            average: Average over the positions of an example first (``reduce``).
            products: How to multiply.
        """
        if average:
            counts = valid.sum(1)
            rows = (features * valid[..., None]).sum(1) / counts.clamp(min=1)[:, None]
            valid = counts > 0
        else:
            rows, valid = features.flatten(0, 1), valid.flatten()
        add_second_moment(total, rows if bool(valid.all()) else rows[valid], products)

    def rotate_inputs(self, a: Tensor, basis: Tensor) -> Tensor:
        """Express inputs in a basis given by its columns [p, p]."""
        return a @ basis

    def add_squared_gradients(self, total: Tensor, a: Tensor, g: Tensor) -> None:
        """Add the sum over examples of the squared per-example gradient, (Σ_r g_r a_rᵀ)².

        Args:
            total: Changed in place, [q, p].
            a: Inputs [N, R, p].
            g: Output gradients [N, R, q].
        """
        if a.shape[1] == 1:  # (g aᵀ)² = g² (a²)ᵀ
            total += g[:, 0].square().T @ a[:, 0].square()
            return
        step = max(1, _CHUNK // (a.shape[-1] * g.shape[-1]))
        for a_part, g_part in zip(torch.split(a, step), torch.split(g, step), strict=True):
            total += (g_part.mT @ a_part).square().sum(0)


class LinearRule(LayerRule):
    """``nn.Linear``: weight [q, p]."""

    layout = Layout.OUT_IN

    @override
    def features(self, module: nn.Module, x: Tensor, examples: int) -> Tensor:
        return x.reshape(examples, -1, x.shape[-1])


class Gpt2Conv1dRule(LinearRule):
    """GPT-2's ``Conv1D``: a linear layer whose weight is stored [p, q]."""

    layout = Layout.IN_OUT


class ConvRule(LayerRule):
    """``nn.Conv1d`` and ``nn.Conv2d`` (Grosse & Martens 2016): a position's input is its patch."""

    layout = Layout.OUT_IN

    @override
    def of(self, module: nn.Module) -> LayerRule:
        assert isinstance(module, nn.Conv1d | nn.Conv2d)
        return self if module.groups == 1 else _GROUPED

    @override
    def reading(self, module: nn.Module) -> tuple[object, ...]:
        assert isinstance(module, nn.Conv1d | nn.Conv2d)
        padding = (*module._reversed_padding_repeated_twice, module.padding_mode)
        patch = (module.kernel_size, module.stride, module.dilation)
        return (*super().reading(module), *patch, *padding)

    @override
    def features(self, module: nn.Module, x: Tensor, examples: int) -> Tensor:
        assert isinstance(module, nn.Conv1d | nn.Conv2d)
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        kernel, dilation, stride = module.kernel_size, module.dilation, module.stride
        if isinstance(module, nn.Conv1d):  # unfold knows images only: one row of pixels
            x, kernel, dilation, stride = x.unsqueeze(2), (1, *kernel), (1, *dilation), (1, *stride)
        patches = functional.unfold(x, kernel, dilation=dilation, stride=stride).mT
        return patches.reshape(examples, -1, patches.shape[-1])

    @override
    def outputs(self, module: nn.Module, g: Tensor, examples: int) -> Tensor:
        return g.flatten(2).mT.reshape(examples, -1, g.shape[1])

    @override
    def leading(self, module: nn.Module, output: Tensor) -> tuple[int, ...]:
        return (output.shape[0], *output.shape[2:])


class GroupedConvRule(ConvRule):
    """A convolution in groups of channels, depthwise for one: each output sees its group's patch.

    The outputs of different groups have different inputs, so that no Kronecker product describes
    the weight, and the curvature is diagonal.
    """

    has_factors = False

    @override
    def of(self, module: nn.Module) -> LayerRule:
        return self

    @override
    def features(self, module: nn.Module, x: Tensor, examples: int) -> Tensor:
        """Return the patches by group [N, R, groups, p]."""
        assert isinstance(module, nn.Conv1d | nn.Conv2d)
        patches = super().features(module, x, examples)
        return patches.reshape(*patches.shape[:-1], module.groups, -1)

    @override
    def add_squared_gradients(self, total: Tensor, a: Tensor, g: Tensor) -> None:
        """Add the squared per-example gradient; see the base class.

        Args:
            total: Changed in place, [q, p].
            a: Inputs by group [N, R, groups, p].
            g: Output gradients [N, R, q], those of a group side by side.
        """
        g = g.reshape(*a.shape[:3], -1)
        for a_part, g_part in zip(
            *(torch.split(x, max(1, _CHUNK // total.numel())) for x in (a, g)), strict=True
        ):
            gradient = torch.einsum("nrkm,nrkp->nkmp", g_part, a_part)
            total += gradient.square().sum(0).flatten(0, 1)


class EmbeddingRule(LayerRule):
    """``nn.Embedding``: the input is one-hot, so A is exactly the diagonal of token frequencies.

    Inputs stay token ids [N, R] instead of one-hot rows. Under ``reduce`` A would be a full
    [V, V] matrix of co-occurrences, so an embedding keeps the A of ``expand`` there.
    """

    layout = Layout.IN_OUT
    diagonal_inputs = True

    @override
    def refusal(self, module: nn.Module) -> str | None:
        for setting in ("max_norm", "scale_grad_by_freq"):
            if value := getattr(module, setting):
                return f"{setting}={value}"
        return None

    @override
    def reading(self, module: nn.Module) -> tuple[object, ...]:
        return (module.padding_idx,)

    def features(self, module: nn.Module, x: Tensor, examples: int) -> Tensor:
        """Bring token ids to [N, R]; the padding token, which never learns, becomes -1."""
        assert isinstance(module, nn.Embedding)
        ids = x.reshape(examples, -1)
        return ids if module.padding_idx is None else ids.masked_fill(ids == module.padding_idx, -1)

    def add_input_moment(
        self, total: Tensor, features: Tensor, valid: Tensor, average: bool, products: Products
    ) -> None:
        """Count the tokens at positions that count: the diagonal of Σ a aᵀ; see the base class.

        Args:
            total: Changed in place, [V].
            features: Token ids [N, R], -1 for tokens without gradient.
            valid: Which positions count [N, R].
            average: Without effect.
            products: Without effect.
        """
        total += torch.bincount(features[valid & (features >= 0)], minlength=len(total))

    def input_examples(self, a: Tensor, valid: Tensor, size: int) -> Tensor:
        """Count the examples in which each token stands at a position that counts, shape [V]."""
        example = torch.arange(len(a), device=a.device)[:, None].expand_as(a)
        counted = valid & (a >= 0)
        pairs = torch.unique(torch.stack([example[counted], a[counted]]), dim=1)
        return torch.bincount(pairs[1], minlength=size)

    def rotate_inputs(self, a: Tensor, basis: Tensor) -> Tensor:
        """A is diagonal already: its eigenbasis is the identity."""
        return a

    def add_squared_gradients(self, total: Tensor, a: Tensor, g: Tensor) -> None:
        """Add the squared per-example gradient of every row; see the base class.

        Args:
            total: Changed in place, [q, V].
            a: Token ids [N, R], -1 for tokens without gradient.
            g: Output gradients [N, R, q].
        """
        tokens, rows = self.token_gradients(a, g)
        total.index_add_(1, tokens, rows.square().T)

    def token_gradients(self, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the gradients of each token in each example: seen twice, they add up.

        Args:
            a: Token ids [N, R], -1 for tokens without gradient.
            g: Output gradients [N, R, q].

        Returns:
            The tokens [M], once for each example that has them, and their gradients [M, q].
        """
        counted = a >= 0
        example = torch.arange(len(a), device=a.device)[:, None].expand_as(a)
        pairs, row = torch.unique(
            torch.stack([example[counted], a[counted]]), dim=1, return_inverse=True
        )
        rows = g.new_zeros(pairs.shape[1], g.shape[-1]).index_add_(0, row, g[counted])
        return pairs[1], rows


class LayerNormRule(LayerRule):
    """``nn.LayerNorm``: gain and bias act elementwise; the curvature is diagonal per example."""

    layout = Layout.ELEMENTWISE
    has_factors = False

    def features(self, module: nn.Module, x: Tensor, examples: int) -> Tensor:
        """Return the normalised input, one column of each gain: [N, R, q, 1]."""
        assert isinstance(module, nn.LayerNorm)
        normalised = functional.layer_norm(x, module.normalized_shape, eps=module.eps)
        return self.outputs(module, normalised, examples)[..., None]

    @override
    def outputs(self, module: nn.Module, g: Tensor, examples: int) -> Tensor:
        assert isinstance(module, nn.LayerNorm)
        return g.reshape(examples, -1, torch.Size(module.normalized_shape).numel())

    @override
    def leading(self, module: nn.Module, output: Tensor) -> tuple[int, ...]:
        assert isinstance(module, nn.LayerNorm)
        return tuple(output.shape[: -len(module.normalized_shape)])

    def add_squared_gradients(self, total: Tensor, a: Tensor, g: Tensor) -> None:
        """Add the squared per-example gradient; see the base class.

        Args:
            total: Changed in place, [q, p].
            a: Normalised inputs and ones [N, R, q, p].
            g: Output gradients [N, R, q].
        """
        total += (g[..., None] * a).sum(1).square().sum(0)


class GainRule(LayerNormRule):
    """A normalisation layer with a gain and no bias: RMSNorm, in each model under another class.

    Its output is c(x) + w ∘ n(x): n(x) is the difference of its outputs at w = 1 and w = 0,
    whatever it normalises by and whether it multiplies by w (Llama) or by 1 + w (Gemma). That a
    class is of this form is seen from its name alone, so the estimator makes sure of the gradient.
    """

    names = ("weight",)

    def features(self, module: nn.Module, x: Tensor, examples: int) -> Tensor:
        """Return the normalised input n(x), one column of each gain: [N, R, q, 1]."""
        ones, zeros = torch.ones_like(_weight(module)), torch.zeros_like(_weight(module))
        at_one = functional_call(module, {"weight": ones}, (x,))
        normalised = at_one - functional_call(module, {"weight": zeros}, (x,))
        return self.outputs(module, normalised, examples)[..., None]

    @override
    def outputs(self, module: nn.Module, g: Tensor, examples: int) -> Tensor:
        return g.reshape(examples, -1, _weight(module).numel())

    @override
    def leading(self, module: nn.Module, output: Tensor) -> tuple[int, ...]:
        return tuple(output.shape[: -_weight(module).ndim])


class TiedEmbeddingRule(EmbeddingRule):
    """``nn.Embedding`` and ``nn.Linear`` with one weight [V, q]: a language model's tied head.

    One example's gradient is that of the embedding plus that of the head, Σ_r onehot(id_r) g_rᵀ +
    Σ_r ∂z_r h_rᵀ with h the inputs of the head and ∂z the gradients of its scores. No single
    Kronecker product describes the sum: KFC has one for each use, the other kinds the diagonal. A
    bias of the head alone is a block of its own.
    """

    has_factors = False
    names = ("weight",)
    beside = ("bias",)

    @override
    def refusal(self, module: nn.Module) -> str | None:
        return super().refusal(module) if isinstance(module, nn.Embedding) else None

    def features(self, module: nn.Module, x: Tensor, examples: int) -> Tensor:
        """Bring token ids to [N, R], or the inputs of the head to [N, R, q]."""
        if isinstance(module, nn.Embedding):
            return super().features(module, x, examples)
        return x.reshape(examples, -1, x.shape[-1])

    def add_squared_sums(self, total: Tensor, ids: Tensor, g: Tensor, h: Tensor, z: Tensor) -> None:
        """Add the sum over examples of the squared per-example gradient of both layers.

        Args:
            total: Changed in place, [q, V].
            ids: Token ids [N, R], -1 for tokens without gradient.
            g: Gradients of the embedding's outputs [N, R, q].
            h: Inputs of the head [N, S, q].
            z: Gradients of the head's scores [N, S, V].
        """
        q, tokens = total.shape
        step = max(1, _CHUNK // (q * tokens))
        for start in range(0, len(ids), step):
            part = slice(start, start + step)
            gradient = z[part].mT @ h[part]  # [n, V, q]
            first_row = torch.arange(len(gradient), device=ids.device)[:, None] * tokens
            counted = ids[part] >= 0
            rows = (first_row + ids[part])[counted]
            gradient.flatten(0, 1).index_add_(0, rows, g[part][counted])
            total += gradient.square_().sum(0).T


class BiasRule(LayerRule):
    """The bias of a linear layer whose weight is another layer's, a tied head's: g is its gradient.

    The bias of a vocabulary has as many entries as it has tokens, so the curvature is diagonal.
    """

    layout = Layout.ELEMENTWISE
    has_factors = False
    names = ("bias",)

    @override
    def features(self, module: nn.Module, x: Tensor, examples: int) -> Tensor:
        rows = x.reshape(examples, -1, x.shape[-1])
        return rows.new_ones(*rows.shape[:-1], 1)

    @override
    def add_squared_gradients(self, total: Tensor, a: Tensor, g: Tensor) -> None:
        total += g.sum(1).square().sum(0)[:, None]


RULES: dict[type[nn.Module], LayerRule] = {
    nn.Linear: LinearRule(),
    Conv1D: Gpt2Conv1dRule(),
    nn.Conv1d: ConvRule(),
    nn.Conv2d: ConvRule(),
    nn.Embedding: EmbeddingRule(),
    nn.LayerNorm: LayerNormRule(),
}
"""Rules by class; a subclass has that of its parent, if a first batch's gradient fits it."""
BIAS = BiasRule()
_GAIN = GainRule()
_GROUPED = GroupedConvRule()
_TIED = TiedEmbeddingRule()


@overload
def register_rule(module_class: type[nn.Module], rule: LayerRule) -> LayerRule: ...


@overload
def register_rule(
    module_class: type[nn.Module],
) -> Callable[[type[LayerRule]], type[LayerRule]]: ...


def register_rule(
    module_class: type[nn.Module], rule: LayerRule | None = None
) -> LayerRule | Callable[[type[LayerRule]], type[LayerRule]]:
    """Give a module class a rule; without one it decorates the rule's class.

    A rule that was there is replaced. Subclasses have it too, if it fits their gradient.

    Args:
        module_class: The class of the modules.
        rule: How their tensors become curvature.

    Returns:
        The rule, or what decorates its class.

    Raises:
        CurvatureError: The class is none of modules.
    """
    if not (isinstance(module_class, type) and issubclass(module_class, nn.Module)):
        raise CurvatureError(f"{module_class!r} is no class of torch modules; give one")
    if rule is not None:
        RULES[module_class] = rule
        return rule

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
    batch is not what the rule makes of it. Not tried so is what looks something up: its input may
    be no row numbers.

    Args:
        module: The module.
    """
    kind, overridden = type(module), False
    for parent in kind.__mro__:
        if parent in RULES:
            if overridden and RULES[parent].diagonal_inputs:
                break
            return RULES[parent].of(module)
        overridden |= "forward" in vars(parent)
    owned = {name for name, _ in module.named_parameters()}
    return _GAIN if kind.__name__.endswith("Norm") and owned == {"weight"} else None


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight
