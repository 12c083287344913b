"""How a prior fits a model: names, parameters left free, rows that were added since, adapters."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_compiled_module
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..curvature import Block, Layout
from ..errors import ConsolidationError, PriorError
from ..precision import wide
from ..priors import ConsolidationPrior
from .adapters import COMPILED, LowRank, Naming, names_for, plain_name
from .processes import whole

__all__ = [
    "FittedBlock",
    "Patterns",
    "as_priors",
    "fit",
    "has_another_head",
    "refuse_compiled",
    "refuse_idle",
]

logger = logging.getLogger(__name__)

_MOST_NAMED = 3
_ALIKE = 0.5
"""Cosine from which a head is the anchor's, moved by training: of one drawn anew it is about 0."""
_IGNORE = "`ignore` of the ConsolidationConfig (`penalty_ignore` of ConsolidationArguments)"
_MISSING, _SHAPE, _UNKNOWN = "the model has no parameter ", "", "the prior knows nothing of "


class Patterns:
    """What of a model is meant by patterns of names.

    Args:
        model: The model.
        patterns: Glob patterns of names, module paths, or class names of modules.
    """

    def __init__(self, model: nn.Module, patterns: Iterable[str] | None) -> None:
        self._patterns = list(patterns or ())
        modules = model.named_modules() if self._patterns else ()
        self._kinds = {plain_name(f"{name}."): type(module).__name__ for name, module in modules}

    def __contains__(self, name: str) -> bool:
        """Whether a parameter or a buffer is meant; the model need not have it."""
        return any(self._means(pattern, name) for pattern in self._patterns)

    def without(self, names: Collection[str]) -> list[str]:
        """Return the patterns that mean none of some names."""
        return [p for p in self._patterns if not any(self._means(p, name) for name in names)]

    def _means(self, pattern: str, name: str) -> bool:
        name = plain_name(name)
        owners = accumulate(f"{part}." for part in name.split(".")[:-1])
        return (
            fnmatchcase(name, pattern)
            or fnmatchcase(name, f"{pattern}.*")
            or any(self._kinds.get(owner) == pattern for owner in owners)
        )


@dataclass(frozen=True)
class FittedBlock:
    """A block of a prior, and where its parameters are in the model.

    Args:
        block: The prior's.
        names: The model's names of its parameters, the weight first.
        rows: Which rows of them (of the first dimension) it covers, shape [k]; None means all.
        adapter: What is added to its weight, if there is something.
    """

    block: Block
    names: tuple[str, ...]
    rows: Tensor | None = None
    adapter: LowRank | None = None


def refuse_compiled(model: Any) -> None:
    """Refuse a model compiled before, of whose data the Trainer would leave out every column."""
    if is_compiled_module(model):
        raise ConsolidationError(
            f"the {type(model._orig_mod).__name__} is compiled already, so that the Trainer finds "
            "no names of inputs and leaves out every column of the data; give the plain model and "
            "torch_compile=True in the training arguments, or set remove_unused_columns=False"
        )


def as_priors(given: Any) -> list[ConsolidationPrior]:
    """Take one prior for a list, and none for an empty one; read those given by their place."""
    given = () if given is None else given
    is_many = isinstance(given, Iterable) and not isinstance(given, str | Mapping)
    priors = []
    for prior in given if is_many else [given]:
        if isinstance(prior, str | Path):
            priors.append(ConsolidationPrior.from_pretrained(prior))
        elif isinstance(prior, ConsolidationPrior):
            priors.append(prior)
        else:
            raise ConsolidationError(
                f"`priors` holds a {type(prior).__name__}; give ConsolidationPrior objects, or the "
                "folders or repositories that they are in"
            )
    return priors


def fit(
    prior: ConsolidationPrior,
    model: nn.Module,
    ignore: Iterable[str] | None = None,
    added_rows: Iterable[str] | None = None,
) -> list[FittedBlock]:
    """Find where a prior's blocks are in a model, which may have adapters.

    A prior of a base model fits the same model with a head, or in another wrapper, where one
    prefix makes its names the model's. Of embeddings and output embeddings with added tokens, the
    first rows are the prior's.

    Args:
        prior: Made of the model, with or without adapters.
        model: The model to be trained, unwrapped.
        ignore: What is not held, see :class:`~hf_kfc.training.ConsolidationConfig`.
        added_rows: What else has got more rows, see there.

    Raises:
        PriorError: A covered parameter is missing or has another shape, a trainable one is neither
            covered nor ignored, or nothing is left to be held. A weight that an adapter changes
            counts as trained.
        ConsolidationError: Adapters that the penalty cannot follow, tied parameters that are
            trained apart, or ``ignore`` means a part of a layer.
    """
    naming, parameters = names_for(model, prior), dict(model.named_parameters())
    prefix = _Prefix.between(prior.curvature.parameters, naming.own)
    free, growing = Patterns(model, ignore), Patterns(model, added_rows)
    tokens, fitted = _of_tokens(model), list[FittedBlock]()
    problems = {_MISSING: list[str](), _SHAPE: list[str](), _UNKNOWN: list[str]()}
    for block in prior.curvature.blocks:
        names = [prefix.of_prior(name) for name in block.shapes]
        if ignored := [name for name in names if name in free]:
            if len(ignored) < len(names):
                raise ConsolidationError(
                    f"`ignore` means {ignored[0]} and not all of {', '.join(names)}, which have "
                    "one curvature; let it mean all of them"
                )
            continue
        if missing := [name for name in names if name not in naming.own]:
            problems[_MISSING] += missing
            continue
        if apart := [name for name in names if name in naming.apart]:
            raise ConsolidationError(
                f"PEFT trains a copy of {apart[0]} that {naming.apart[apart[0]]} does not share, "
                "and the prior's curvature is of both uses; name both in `modules_to_save`, with "
                f"ensure_weight_tying=True, or leave them out of the penalty by {_IGNORE}"
            )
        own = tuple(naming.own[name] for name in names)
        found = [tuple(parameters[name].shape) for name in own]
        adapter = naming.adapters.get(names[0])
        may_grow = (own[0] in tokens or names[0] in growing) and adapter is None
        if found == list(block.shapes.values()):
            fitted.append(FittedBlock(block, own, block.inputs, adapter))
        elif may_grow and _have_grown(block, found):
            rows = torch.arange(next(iter(block.shapes.values()))[0])
            rows = rows if block.inputs is None else block.inputs
            fitted.append(FittedBlock(block, own, rows))
            logger.info("%s has new rows since task '%s': they are free.", names[0], prior.task)
        else:
            problems[_SHAPE] += [
                f"{name} has shape {list(ours)}, the prior's has {list(theirs)}"
                for name, ours, theirs in zip(names, found, block.shapes.values(), strict=True)
                if ours != theirs
            ]
    known = {prefix.of_prior(n) for n in (*prior.curvature.parameters, *prior.curvature.ignored)}
    trained = {name for name, own in naming.own.items() if parameters[own].requires_grad}
    trained |= {
        name
        for name, (down, up, *_) in naming.adapters.items()
        if parameters[down].requires_grad or parameters[up].requires_grad
    }
    problems[_UNKNOWN] = [n for n in _ordered(trained, naming) if n not in known and n not in free]
    _refuse(prior, model, prefix, problems)
    if not fitted:
        raise PriorError(f"`ignore` leaves nothing of the prior of task '{prior.task}' to be held")
    if prefix != _Prefix():
        logger.info("The prior of task '%s' %s.", prior.task, prefix)
    return fitted


def has_another_head(
    prior: ConsolidationPrior, model: nn.Module, ignore: Iterable[str] | None
) -> bool:
    """Whether what ``ignore`` leaves free outside of the base model is not the prior's head.

    Its outputs on probes are then answers to another question. A head that has been trained since
    is still alike.

    Args:
        prior: Of an earlier task.
        model: The model to be trained, unwrapped.
        ignore: What is not held.
    """
    naming, parameters = names_for(model, prior), dict(model.named_parameters())
    prefix = _Prefix.between(prior.curvature.parameters, naming.own)
    free, below = Patterns(model, ignore), _base_models(model)
    names = {name: prefix.of_prior(name) for name in prior.anchor}
    pairs = [
        (whole(parameters[naming.own[own]].detach()), prior.anchor[name])
        for name, own in names.items()
        if own in free and own in naming.own and not own.startswith(below)
    ]
    if any(ours.shape != theirs.shape for ours, theirs in pairs):
        return True
    if not pairs:
        return False
    ours, theirs = (
        torch.cat([wide(pair[side]).flatten().cpu() for pair in pairs]) for side in (0, 1)
    )
    return float(torch.cosine_similarity(ours, theirs, dim=0)) < _ALIKE


def _base_models(model: nn.Module) -> tuple[str, ...]:
    """Return where the base models are that heads stand on, each with a dot at its end."""
    return tuple(
        plain_name(f"{path}.{module.base_model_prefix}.").lstrip(".")
        for path, module in model.named_modules()
        if isinstance(module, PreTrainedModel) and module.base_model is not module
    )


def refuse_idle(
    setting: str,
    patterns: Iterable[str] | None,
    model: nn.Module,
    priors: Sequence[ConsolidationPrior],
) -> None:
    """Refuse a pattern of a setting that means nothing, in the model or in a prior."""
    known = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    known |= {name for prior in priors for name in prior.curvature.parameters}
    if idle := Patterns(model, patterns).without(known):
        raise ConsolidationError(
            f"'{idle[0]}' in `{setting}` means no parameter, buffer or module class of "
            f"{type(model).__name__} or of a prior; correct or remove it"
        )


def _ordered(names: set[str], naming: Naming) -> list[str]:
    """In the model's order; a weight may be known by its adapter alone."""
    return [name for name in dict.fromkeys((*naming.own, *naming.adapters)) if name in names]


def _of_tokens(model: nn.Module) -> set[str]:
    """Names of the parameters whose rows are tokens: of embeddings, and of the output embedding."""
    output: Any = getattr(model, "get_output_embeddings", lambda: None)()
    return {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if module is output or isinstance(module, nn.Embedding)
        for name, _ in module.named_parameters(recurse=False)
    }


def _have_grown(block: Block, found: Sequence[tuple[int, ...]]) -> bool:
    """Whether all parameters of a block have equally many rows more than the prior's."""
    shapes = list(block.shapes.values())
    more = {len(f) and f[0] - s[0] for f, s in zip(found, shapes, strict=True)}
    same = all(f[1:] == s[1:] for f, s in zip(found, shapes, strict=True))
    by_rows = block.layout in (Layout.OUT_IN, Layout.ELEMENTWISE) or block.is_embedding
    return by_rows and same and len(more) == 1 and min(more) > 0


@dataclass(frozen=True)
class _Prefix:
    """What is to be removed from a prior's names, or added, to have the model's.

    Args:
        removed: From the beginning of the prior's.
        added: There.
        others: Further prefixes that would do as well, so that none is taken.
    """

    removed: str = ""
    added: str = ""
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.others:
            return f"would fit with any of the prefixes {', '.join(self.others)}"
        if self.removed and self.added:
            return f"fits with '{self.added}' in the place of '{self.removed}'"
        side, prefix = ("the prior", self.removed) if self.removed else ("the model", self.added)
        return f"fits by the names that {side} has after '{prefix}'"

    def of_prior(self, name: str) -> str:
        """Return the model's name of a prior's parameter."""
        name = name.replace(COMPILED, "")
        is_under = name.startswith(self.removed)
        return self.added + name.removeprefix(self.removed) if is_under else name

    @classmethod
    def between(cls, priors: Iterable[str], models: Collection[str]) -> _Prefix:
        """Find the one change of prefix that makes most of a prior's names the model's.

        One prefix takes the place of another where a base model is put under another head: a
        classifier's ``bert.`` is ``0.model.`` in a model of sentence-transformers.
        """
        names = [name.replace(COMPILED, "") for name in priors]
        fitting = Counter({cls(): sum(name in models for name in names)})
        if fitting[cls()] == len(names):
            return cls()
        by_end = {end: list[str]() for name in models for _, end in _splits(name)}
        for name in models:
            for start, end in _splits(name):
                by_end[end].append(start)
        for name in names:
            fitting.update(cls(added=start) for start in by_end.get(name, ()))
            fitting.update(cls(removed=s) for s, end in _splits(name) if end in models)
        if max(fitting.values()) < len(names):
            ends = ((s, by_end[end]) for name in names for s, end in _splits(name) if end in by_end)
            changes = Counter(cls(s, starts[0]) for s, starts in ends if len(starts) == 1)
            # Of equal ones the shortest was counted first; a few names in common are an accident.
            fitting.update({c: n for c, n in changes.most_common(1) if 2 * n > len(names)})
        most = max(fitting.values())
        best = [prefix for prefix, count in fitting.items() if count == most]
        if len(best) == 1 or cls() in best:
            return cls() if cls() in best else best[0]
        return cls(others=tuple(f"'{prefix.added or prefix.removed}'" for prefix in best))


def _splits(name: str) -> list[tuple[str, str]]:
    """All ways to cut a name into a prefix, with its dot, and the rest."""
    parts = name.split(".")
    return [(".".join(parts[:n]) + ".", ".".join(parts[n:])) for n in range(1, len(parts))]


def _refuse(
    prior: ConsolidationPrior, model: nn.Module, prefix: _Prefix, problems: dict[str, list[str]]
) -> None:
    """Raise if there is any problem, with some parameters of each kind and what can be done."""
    said = [f"{what}{_some(names)}" for what, names in problems.items() if names]
    if not said:
        return
    said += [f"it {prefix}"] * (prefix != _Prefix())
    grown = ", or list them in `added_rows` if their first rows are the old ones"
    raise PriorError(
        f"prior of task '{prior.task}' does not fit {type(model).__name__}: {'; '.join(said)}; "
        f"if that is meant, leave them out of the penalty by {_IGNORE}"
        + grown
        * bool(problems[_SHAPE])
    )


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
