"""Which layers a model has, which of them share parameters, and which have no rule."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import CurvatureError
from ..precision import wide_dtype
from .blocks import Block, Curvature, Layout, matrix_shape
from .layers import BIAS, ExpertsRule, LayerRule, LinearRule, find_experts_rule, find_rule, rule_of
from .modes import evaluating
from .operators import Identity, Operator

__all__ = [
    "PAPER_IGNORE",
    "Layer",
    "Survey",
    "by_reason",
    "find_layers",
    "identity_curvature",
    "refuse",
    "survey",
    "unwrapped",
]

PAPER_IGNORE = ("LayerNorm",)
"""The choice of McInerney et al. 2021: the normalisation layers move freely."""

_NAMED = 3  # parameters that a refusal names of each kind


@dataclass(frozen=True)
class Layer:
    """One parameter block and the modules that use it (several, if their weights are tied).

    Args:
        name: Name of the first module; of a bias alone, of the parameter.
        rule: How its tensors become curvature.
        modules: The modules, by name.
        parameters: The parameters, by name, the weight first.
    """

    name: str
    rule: LayerRule
    modules: dict[str, nn.Module] = field(repr=False)
    parameters: dict[str, nn.Parameter] = field(repr=False)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters, by name."""
        return {name: tuple(p.shape) for name, p in self.parameters.items()}

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (q, p) of the block's matrix."""
        return matrix_shape(self.rule.layout, self.shapes)

    @property
    def read(self) -> dict[int, nn.Module]:
        """The modules whose calls do not tell how their weight is read, by the weight's id."""
        return {
            id(getattr(module, self.rule.names[0])): module
            for module in self.modules.values()
            if not self.rule.by_call(module)
        }

    def block(self, operator: Operator, input_examples: Tensor | None = None) -> Block:
        """Give the layer a curvature."""
        return Block(
            self.name, self.rule.layout, self.shapes, operator, input_examples=input_examples
        )

    def zeros(self, *shape: int) -> Tensor:
        """Make a tensor to sum in: on the layer's device, in at least float32."""
        weight = next(iter(self.parameters.values()))
        return torch.zeros(shape, dtype=wide_dtype(weight.dtype), device=weight.device)


@dataclass(frozen=True)
class Survey:
    """What a model is made of, as the estimator sees it.

    Args:
        layers: With a rule, in the model's order.
        ignored: Names of the ignored parameters.
        without_rule: Trainable parameters that no rule covers, and why.
    """

    layers: list[Layer]
    ignored: list[str]
    without_rule: dict[str, str]


def survey(model: nn.Module, ignore: Sequence[str] = ()) -> Survey:
    """Find the rule of every trainable parameter.

    Args:
        model: The model; frozen parameters are left out, they cannot move.
        ignore: What to leave out on purpose: glob patterns of names of parameters
            (``"*.pooler.*"``) or modules (``"encoder.layer.0"``), or class names of modules
            (``"LayerNorm"``).

    Raises:
        CurvatureError: An ``ignore`` entry matches nothing, or a parameter is complex.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    ignored = _ignored(model, ignore, names)
    owners: dict[int, dict[str, nn.Module]] = defaultdict(dict)
    for module_name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)][module_name] = module
    layers, without_rule, done = list[Layer](), dict[str, str](), set[int]()
    with evaluating(model):  # in training, to read a weight moves what spectral_norm keeps of it
        for name, parameter in model.named_parameters():
            if not _is_free(parameter, names, ignored) or id(parameter) in done:
                continue
            found = _layer(parameter, owners, names, ignored)
            if isinstance(found, str):
                without_rule[name] = found
                continue
            layers.append(found)
            done |= {id(p) for p in found.parameters.values()}
    return Survey(layers, sorted(ignored), without_rule)


def find_layers(model: nn.Module, ignore: Sequence[str] = ()) -> tuple[list[Layer], list[str]]:
    """Find the rule of every trainable parameter; refuse a model with one that has none.

    Args:
        model: As in :func:`survey`.
        ignore: As in :func:`survey`.

    Returns:
        The layers in the model's order, and the names of the ignored parameters.

    Raises:
        CurvatureError: Parameters without a rule, tied parameters that no single rule covers, or
            an ``ignore`` entry that matches nothing.
    """
    found = survey(model, ignore)
    if found.without_rule:
        refuse(found.without_rule)
    return found.layers, found.ignored


def refuse(without_rule: Mapping[str, str]) -> None:
    """Refuse parameters that have no rule, grouped by what stands in the way.

    Args:
        without_rule: Their names, and why.

    Raises:
        CurvatureError: In any case.
    """
    raise CurvatureError(
        f"no curvature rule for {by_reason(without_rule)}; leave fallback='diagonal' to have their "
        "exact diagonal, register a rule for the class, or list them in `ignore=[...]` to let "
        "them move freely"
    )


def by_reason(reasons: Mapping[str, str]) -> str:
    """Group parameters by what is to say of them, a few of each named, in under 800 characters.

    Args:
        reasons: Their names, and why.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for name, reason in reasons.items():
        groups[reason].append(name)
    told, left = list[str](), 0
    for reason, members in groups.items():
        more = f" and {len(members) - _NAMED} more" if len(members) > _NAMED else ""
        phrase = f"{', '.join(members[:_NAMED])}{more} ({reason})"
        if sum(map(len, told)) + len(phrase) > 650:
            left += len(members)
        else:
            told.append(phrase)
    return ", ".join(told) + (f", and {left} other parameters" if left else "")


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model that ``torch.compile`` or data parallelism has wrapped, with its own names.

    Args:
        model: Wrapped or not.

    Raises:
        CurvatureError: It is no model, has no values, is sharded, or a part of it is compiled.
    """
    if not isinstance(model, nn.Module):
        raise CurvatureError(
            f"a {type(model).__name__} is no model; give an nn.Module, as from_pretrained makes one"
        )
    while type(model).__name__ in ("OptimizedModule", "DistributedDataParallel", "DataParallel"):
        model = model._orig_mod if hasattr(model, "_orig_mod") else model.module  # type: ignore[assignment]
    sharded = any(hasattr(p, "full_tensor") for p in model.parameters())
    if sharded or type(model).__name__ == "FullyShardedDataParallel":
        raise CurvatureError(
            f"the model is sharded ({type(model).__name__}); estimate on the whole model, for "
            "example after save_pretrained and from_pretrained"
        )
    for name, parameter in model.named_parameters():
        if is_lazy(parameter) or parameter.is_meta:
            raise CurvatureError(
                f"parameter '{name}' has no values (it is lazy, or on the meta device, as what is "
                "offloaded); run the model once, or load the whole of it on one device"
            )
    if isinstance(model, torch.jit.ScriptModule):
        raise CurvatureError(
            f"{type(model).__name__} is compiled by torch.jit; give the model that it was made of"
        )
    for name, module in model.named_modules():
        if type(module).__name__ == "OptimizedModule":
            raise CurvatureError(
                f"the module '{name}' is wrapped by torch.compile, so its parameters have other "
                "names than in a plain model; call its compile() method instead of torch.compile"
            )
    return model


def identity_curvature(model: nn.Module, ignore: Sequence[str] = ()) -> Curvature:
    """Return the curvature F = I of every trainable parameter: L2 towards the anchor.

    Args:
        model: The model; every kind of parameter is admitted.
        ignore: As in :func:`survey`.
    """
    model = unwrapped(model)
    names = {id(p): name for name, p in model.named_parameters()}
    ignored = _ignored(model, ignore, names)
    blocks = tuple(
        Block(name, Layout.ELEMENTWISE, {name: tuple(p.shape)}, Identity())
        for name, p in model.named_parameters()
        if p.requires_grad and name not in ignored
    )
    return Curvature(blocks, num_examples=0, ignored=tuple(sorted(ignored)))


def _ignored(model: nn.Module, ignore: Sequence[str], names: dict[int, str]) -> set[str]:
    """Find what the patterns match; of the others none may be complex."""
    if isinstance(ignore, str) or not all(isinstance(pattern, str) for pattern in ignore):
        raise CurvatureError(f"ignore is {ignore!r:.200}; give a list of patterns")
    ignored = set[str]()
    for pattern in ignore:
        matched = {name for name in names.values() if fnmatchcase(name, pattern)}
        for module_name, module in model.named_modules():
            if type(module).__name__ == pattern or (
                module_name and fnmatchcase(module_name, pattern)
            ):
                matched |= {names[id(p)] for p in module.parameters()}
        if not matched:
            known = {type(module).__name__ for module in model.modules()}
            known |= {name for name, _ in model.named_modules()} | set(names.values())
            near = get_close_matches(pattern, sorted(known - {""}), n=1)
            hint = f" (the nearest is '{near[0]}')" if near else ""
            raise CurvatureError(
                f"ignore entry '{pattern}' matches no parameter name, module name or module class "
                f"of {type(model).__name__}{hint}; correct or remove it"
            )
        ignored |= matched
    for name, parameter in model.named_parameters():
        if parameter.is_complex() and parameter.requires_grad and name not in ignored:
            raise CurvatureError(
                f"parameter '{name}' is complex, and curvature is of real numbers; let the model "
                "hold real and imaginary parts (torch.view_as_complex), or list it in `ignore`"
            )
    return ignored


def _layer(
    parameter: nn.Parameter,
    owners: Mapping[int, dict[str, nn.Module]],
    names: Mapping[int, str],
    ignored: set[str],
) -> Layer | str:
    """Make the layer of one (possibly tied) parameter, or say why there is none."""
    linear = {
        name: module
        for name, module in owners[id(parameter)].items()
        if isinstance(rule_of(module), LinearRule) and getattr(module, "bias", None) is parameter
    }
    if linear:
        weight = next(iter(linear.values())).weight
        # Made anew by its module, not to be moved, or tied to an embedding.
        alone = not isinstance(weight, nn.Parameter) or not _is_free(weight, names, ignored)
        if alone or not isinstance(find_rule(owners[id(weight)].values()), LinearRule):
            return Layer(names[id(parameter)], BIAS, linear, {names[id(parameter)]: parameter})
        assert isinstance(weight, nn.Parameter)
        parameter = weight
    modules = owners[id(parameter)]
    rule = find_experts_rule(modules.values(), parameter) or find_rule(modules.values())
    if rule is not None and _stands_beside(parameter, rule, modules.values()):
        rule = None
    kinds = list(dict.fromkeys(type(m).__name__ for m in modules.values()))
    if rule is None:
        return kinds[0] if len(modules) == 1 else _tied(modules, "which no rule covers")
    owned = {name: dict(m.named_parameters(recurse=False)) for name, m in modules.items()}
    refusals = (_refusal(rule, module, owned[name]) for name, module in modules.items())
    if refusal := next(filter(None, refusals), None):
        return f"{' and '.join(kinds)} {refusal}"
    blocks = [{n: own[n] for n in rule.names if n in own} for own in owned.values()]
    if len({tuple(map(id, block.values())) for block in blocks}) > 1:
        return _tied(modules, "which do not share all parameters")
    parameters = {names[id(p)]: p for p in blocks[0].values()}
    if len({p.requires_grad for p in parameters.values()}) > 1 or ignored & parameters.keys():
        return "only a part of its layer's parameters is trainable and not ignored"
    # A module of experts has two blocks.
    name = next(iter(parameters if isinstance(rule, ExpertsRule) else modules))
    return Layer(name, rule, dict(modules), parameters)


def _stands_beside(
    parameter: nn.Parameter, rule: LayerRule, modules: Collection[nn.Module]
) -> bool:
    """Whether a module whose weight alone has a rule owns this parameter besides."""
    named = [getattr(module, name, None) for module in modules for name in rule.names]
    return not any(map(rule.by_call, modules)) and not any(p is parameter for p in named)


def _is_free(p: nn.Parameter, names: Mapping[int, str], ignored: set[str]) -> bool:
    return p.requires_grad and names[id(p)] not in ignored


def _refusal(rule: LayerRule, module: nn.Module, own: Mapping[str, nn.Parameter]) -> str | None:
    """Say why the rule of a module's class is none for this module."""
    if rule.by_call(module) and (added := sorted(own.keys() - {*rule.names, *rule.beside})):
        return f"with parameters {', '.join(added)} added to it"
    if rule.names[0] not in own:
        return f"that owns no {rule.names[0]}"
    refusal = rule.refusal(module)
    return None if refusal is None else f"with {refusal}"


def _tied(modules: Mapping[str, nn.Module], trouble: str) -> str:
    owners = " and ".join(f"{name}: {type(module).__name__}" for name, module in modules.items())
    return f"tied between {owners}, {trouble}: freeze or untie it"
