"""Which layers a model has, which of them share parameters, and which have no rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from ..errors import CurvatureError
from ..precision import wide_dtype
from .blocks import Block, Curvature, Layout, matrix_shape
from .layers import LayerRule, find_rule
from .operators import Identity, Operator

__all__ = ["PAPER_IGNORE", "Layer", "find_layers", "identity_curvature"]

PAPER_IGNORE = ("LayerNorm",)
"""The choice of McInerney et al. 2021: the normalisation layers move freely."""


@dataclass(frozen=True)
class Layer:
    """One parameter block and the modules that use it (several, if their weights are tied).

    Args:
        name: Name of the first module.
        rule: How its tensors become curvature.
        shapes: Parameter names and shapes, the weight first.
        modules: The modules, by name.
    """

    name: str
    rule: LayerRule
    shapes: dict[str, tuple[int, ...]]
    modules: dict[str, nn.Module] = field(repr=False)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (q, p) of the block's matrix."""
        return matrix_shape(self.rule.layout, self.shapes)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters, by name."""
        return dict(zip(self.shapes, next(iter(self.modules.values())).parameters(), strict=True))

    def block(self, operator: Operator, input_examples: Tensor | None = None) -> Block:
        """Give the layer a curvature."""
        return Block(
            self.name, self.rule.layout, self.shapes, operator, input_examples=input_examples
        )

    def zeros(self, *shape: int) -> Tensor:
        """Make a tensor to sum in: on the layer's device, in at least float32."""
        weight = next(next(iter(self.modules.values())).parameters(recurse=False))
        dtype = wide_dtype(weight.dtype)
        return torch.zeros(shape, dtype=dtype, device=weight.device)


def find_layers(model: nn.Module, ignore: Sequence[str] = ()) -> tuple[list[Layer], list[str]]:
    """Find the rule of every trainable parameter.

    Args:
        model: The model; frozen parameters are left out, they cannot move.
        ignore: What to leave out on purpose: glob patterns of parameter names
            (``"*.pooler.*"``) or class names of modules (``"LayerNorm"``).

    Returns:
        The layers in the model's order, and the names of the ignored parameters.

    Raises:
        CurvatureError: Parameters without a rule (all are named), tied parameters that no single
            rule covers, or an ``ignore`` entry that matches nothing.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    ignored = _ignored(model, ignore, names)
    owners: dict[int, dict[str, nn.Module]] = defaultdict(dict)
    for module_name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)][module_name] = module

    layers, problems, done = [], [], set[int]()
    for name, parameter in model.named_parameters():
        if name in ignored or not parameter.requires_grad or id(parameter) in done:
            continue
        modules = owners[id(parameter)]
        found = _layer(modules, names, ignored)
        if isinstance(found, str):
            problems.append(f"{name} ({found})")
            continue
        layers.append(found)
        done |= {id(p) for m in modules.values() for p in m.parameters(recurse=False)}
    if problems:
        raise CurvatureError(
            f"no curvature rule for {', '.join(problems)}; "
            "list them in `ignore=[...]` to let them move freely"
        )
    return layers, sorted(ignored)


def identity_curvature(model: nn.Module, ignore: Sequence[str] = ()) -> Curvature:
    """Return the curvature F = I of every trainable parameter: L2 towards the anchor.

    Args:
        model: The model; every kind of parameter is admitted.
        ignore: As in :func:`find_layers`.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    ignored = _ignored(model, ignore, names)
    blocks = tuple(
        Block(name, Layout.ELEMENTWISE, {name: tuple(p.shape)}, Identity())
        for name, p in model.named_parameters()
        if p.requires_grad and name not in ignored
    )
    return Curvature(blocks, num_examples=0, ignored=tuple(sorted(ignored)))


def _ignored(model: nn.Module, ignore: Sequence[str], names: dict[int, str]) -> set[str]:
    ignored = set[str]()
    for pattern in ignore:
        matched = {name for name in names.values() if fnmatchcase(name, pattern)}
        for module in model.modules():
            if type(module).__name__ == pattern:
                matched |= {names[id(p)] for p in module.parameters()}
        if not matched:
            raise CurvatureError(
                f"ignore entry '{pattern}' matches no parameter name and no module class of "
                f"{type(model).__name__}; correct or remove it"
            )
        ignored |= matched
    return ignored


def _layer(modules: dict[str, nn.Module], names: dict[int, str], ignored: set[str]) -> Layer | str:
    """Make the layer of one (possibly tied) parameter, or say why there is none."""
    kinds = list(dict.fromkeys(type(m).__name__ for m in modules.values()))
    rule = find_rule(modules.values())
    if rule is None:
        return kinds[0] if len(modules) == 1 else _tied(modules, "which no rule covers")
    owned = {tuple(names[id(p)] for p in m.parameters(recurse=False)): m for m in modules.values()}
    if len(owned) > 1:
        return _tied(modules, "which do not share all parameters")
    (parameter_names,) = owned
    module = next(iter(modules.values()))
    extra = sorted(
        {name for name, _ in module.named_parameters(recurse=False)} - {"weight", "bias"}
    )
    refusals = [rule.refusal(m) for m in modules.values()]
    if extra:
        refusals.insert(0, f"parameters {', '.join(extra)} added to it")
    if refusal := next(filter(None, refusals), None):
        return f"{' and '.join(kinds)} with {refusal}"
    if len({p.requires_grad for p in module.parameters()}) > 1 or ignored & set(parameter_names):
        return "only a part of its layer's parameters is trainable and not ignored"
    shapes = {names[id(p)]: tuple(p.shape) for p in module.parameters()}
    return Layer(next(iter(modules)), rule, shapes, dict(modules))


def _tied(modules: Mapping[str, nn.Module], trouble: str) -> str:
    owners = " and ".join(f"{name}: {type(module).__name__}" for name, module in modules.items())
    return f"tied between {owners}, {trouble}: freeze or untie it"
