"""Several priors in one: the curvature of all their tasks, and the anchor that goes with it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import hypot
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..curvature import Block, Curvature, Merged, Operator, merge_sharing
from ..curvature.operators import spread_columns
from ..errors import CurvatureError, PriorError
from ..text import printable
from ..values import is_number, is_whole
from .base import BasePrior, tell_left_out
from .content import Parts
from .provenance import Provenance, compounded

__all__ = ["merged_parts"]

logger = logging.getLogger(__name__)

_SETTLED = 1e-4
_LEAST = 1e-9  # of a weight, and its inverse the most: F is stored in float32


def merged_parts(
    priors: Sequence[BasePrior],
    rank: int,
    weights: Any,
    damping: float,
) -> Parts:
    """Merge priors into one, whose penalty is near to the weighted sum of theirs."""
    if not priors:
        raise PriorError("there are no priors to merge; give one or more")
    if others := [type(prior).__name__ for prior in priors if not isinstance(prior, BasePrior)]:
        raise PriorError(
            f"a {others[0]} cannot be merged; give priors, as from_pretrained reads them"
        )
    if not is_whole(rank):
        raise PriorError(f"rank {rank!r:.40} is no whole number; give one of at least 1")
    if not (is_number(damping) and damping >= 0):
        raise PriorError(f"damping {damping!r:.40} is not a number of at least 0; correct it")
    _refuse_unlike(priors)
    for prior in priors:
        tell_left_out(
            prior,
            "they are of its anchor, which is not the merged one; give them to the trainer beside "
            "the merged prior",
        )
    shares = _shares(priors, weights)
    anchor: dict[str, Tensor] = {}
    blocks: dict[str, Block] = {}
    errors: dict[str, float] = {}
    by_name = [{block.name: block for block in prior.curvature.blocks} for prior in priors]
    with tqdm(total=len(by_name[0]), desc="merging", unit="layer", disable=None) as bar:
        for names in _sharing_inputs(by_name):
            layers = [_parts(name, by_name, priors, shares) for name in names]
            for name, parts, merged in zip(names, layers, _merge(names, layers, rank), strict=True):
                blocks[name] = _merged_block(parts, merged.operator)
                anchor |= _merged_anchor(parts, blocks[name], damping)
                errors[name] = compounded(_known_error(name, priors), merged.error)
                bar.update()
    curvature = Curvature(
        tuple(blocks[name] for name in by_name[0]),
        # As of tokens: the priors may be of the same examples, of which there are not more then.
        max(prior.curvature.num_examples for prior in priors),
        tuple(sorted({name for prior in priors for name in prior.curvature.ignored})),
    )
    provenance = replace(
        _provenance([prior.provenance for prior in priors], shares, curvature),
        merge_damping=float(damping),
        approximation_errors=errors,
    )
    return {name: anchor[name] for name in priors[0].anchor}, curvature, provenance


def _refuse_unlike(priors: Sequence[BasePrior]) -> None:
    """Make sure that all priors cover the same parameters in the same way."""
    first = {block.name: block for block in priors[0].curvature.blocks}
    problems = []
    for prior in priors[1:]:
        other = {block.name: block for block in prior.curvature.blocks}
        for task, names in (
            (priors[0].task, first.keys() - other.keys()),
            (prior.task, other.keys() - first.keys()),
        ):
            if names:
                problems.append(f"only '{task}' covers {', '.join(sorted(names))}")
        problems += [
            f"{name} is {_describe(block)} in '{priors[0].task}' and {_describe(other[name])} in "
            f"'{prior.task}'"
            for name, block in first.items()
            if name in other and _describe(block) != _describe(other[name])
        ]
    if problems:
        tasks = ", ".join(f"'{prior.task}'" for prior in priors)
        raise PriorError(
            f"priors of {tasks} cannot be merged, they must be of one model: " + "; ".join(problems)
        )


def _describe(block: Block) -> str:
    shapes = (f"{name} {list(shape)}" for name, shape in block.shapes.items())
    return f"{' and '.join(shapes)} as {block.layout}"


def _shares(priors: Sequence[BasePrior], weights: Any) -> tuple[float, ...]:
    """Return the weight of each prior's F, by default its share of all examples."""
    if weights is None:
        counts = [prior.provenance.num_examples for prior in priors]
        for prior, count in zip(priors, counts, strict=True):
            if not count:
                raise PriorError(
                    f"prior of task '{prior.task}' tells no number of examples; give weights"
                )
        return tuple(count / sum(counts) for count in counts)
    if isinstance(weights, str) or not isinstance(weights, Collection):
        raise PriorError(f"weights {weights!r:.40} is no list of numbers; give one of each prior")
    if len(weights) != len(priors):
        raise PriorError(
            f"{len(weights)} weights are given for {len(priors)} priors; give each one"
        )
    for weight in weights:
        if not (is_number(weight) and _LEAST <= weight <= 1 / _LEAST):
            raise PriorError(
                f"weight {weight!r:.40} is not a number above 0, from {_LEAST} to {1 / _LEAST}"
            )
    return tuple(map(float, weights))


def _sharing_inputs(by_name: Sequence[Mapping[str, Block]]) -> list[list[str]]:
    """Group the blocks that hold the same input factors, in every one of the priors."""
    groups: dict[Hashable, list[str]] = {}
    for name in by_name[0]:
        operators = [own[name].operator for own in by_name]
        held = [tuple(id(op.state()[part]) for part in op.input_names) for op in operators]
        groups.setdefault(tuple(held) if all(held) else name, []).append(name)
    return list(groups.values())


def _known_error(name: str, priors: Sequence[BasePrior]) -> float:
    """Bound the relative error of Σ w_i F_i by those e_i of the F_i: √(Σ e_i²).

    Σ w_i e_i ‖F_i‖ ≤ √(Σ e_i²) √(Σ w_i² ‖F_i‖²) by Cauchy and Schwarz, and the last root is at most
    ‖Σ w_i F_i‖, because ⟨F_i, F_j⟩ ≥ 0.
    """
    errors = [prior.provenance.approximation_errors.get(name, 0.0) for prior in priors]
    return hypot(*errors)


# --- One block -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """A block of one prior, spread over the tokens that any prior covers.

    Args:
        block: The block; tokens that its prior does not cover have frequency zero.
        covered: Which columns of its matrix its prior covers, shape [p].
        anchor: Of the prior.
        share: Weight w of the prior.
    """

    block: Block
    covered: Tensor
    anchor: Mapping[str, Tensor]
    share: float

    def matrix(self, otherwise: Tensor) -> Tensor:
        """Return θ_i in float64, shape [q, p]; what it does not cover is as given."""
        matrix = otherwise.clone()
        matrix[:, self.covered] = self.block.join(self.anchor).double()
        return matrix


def _parts(
    name: str,
    by_name: Sequence[Mapping[str, Block]],
    priors: Sequence[BasePrior],
    shares: Sequence[float],
) -> list[_Part]:
    blocks = [own[name] for own in by_name]
    tokens = None
    if any(block.inputs is not None for block in blocks):
        # As many as the files have rows: how many the vocabulary has is only said.
        tokens = torch.unique(torch.cat([block.tokens for block in blocks]))
    return [
        _Part(*_over_tokens(block, tokens), prior.anchor, share)
        for block, prior, share in zip(blocks, priors, shares, strict=True)
    ]


def _over_tokens(block: Block, tokens: Tensor | None) -> tuple[Block, Tensor]:
    """Spread an embedding's block over more tokens; also tell which of them it had before."""
    if tokens is None or block.inputs is None:
        return block, torch.ones(block.shape[1], dtype=torch.bool)
    covered = torch.isin(tokens, block.inputs)
    operator, counts = block.operator, block.input_examples
    if not bool(covered.all()):
        columns = covered.nonzero().flatten()
        operator = operator.spread(columns, len(tokens))
        counts = None if counts is None else spread_columns(counts, columns, len(tokens))
    ((vocabulary, _),) = block.shapes.values()
    inputs = None if len(tokens) == vocabulary else tokens
    return replace(block, operator=operator, inputs=inputs, input_examples=counts), covered


def _merge(names: Sequence[str], layers: Sequence[Sequence[_Part]], rank: int) -> list[Merged]:
    shares = [part.share for part in layers[0]]
    operators = [[part.block.operator for part in parts] for parts in layers]
    try:
        return merge_sharing(operators, shares, rank)
    except CurvatureError as error:
        raise PriorError(f"{', '.join(names)} cannot be merged: {error}") from None


def _merged_block(parts: Sequence[_Part], operator: Operator) -> Block:
    """Join the blocks; a token's count is the most that one prior tells.

    That many different examples have it for certain. The sum may be of the same ones: two priors
    of one data set would make a token of 7 examples one of 14, and it would be published.
    """
    counts = [part.block.input_examples for part in parts]
    known = [count for count in counts if count is not None]
    most = torch.stack(known).amax(0) if len(known) == len(counts) else None
    return replace(parts[0].block, operator=operator, input_examples=most)


def _merged_anchor(parts: Sequence[_Part], merged: Block, damping: float) -> dict[str, Tensor]:
    """Find where the merged penalty is centred, θ̄ with F θ̄ = Σ_i w_i F_i θ_i.

    Up to a constant Σ_i w_i (θ−θ_i)ᵀF_i(θ−θ_i) is then (θ−θ̄)ᵀF(θ−θ̄). With an F that is only
    near to Σ_i w_i F_i, it is solved from the mean θ_0 of the anchors on, F(θ̄−θ_0) =
    Σ_i w_i F_i(θ_i−θ_0): at θ_0 the gradient of the penalty is exact.
    """
    device = next(iter(parts[0].anchor.values())).device
    zero = torch.zeros(merged.shape, dtype=torch.float64, device=device)
    mass = torch.stack([part.share * part.covered.double() for part in parts]).sum(0).to(device)
    mean = sum((part.share * part.matrix(zero) for part in parts), zero) / mass
    b = zero.clone()
    for part in parts:
        F = part.block.operator.to(dtype=torch.float64).damped(damping)
        b += part.share * F.apply(part.matrix(mean) - mean)
    solution = merged.operator.to(dtype=torch.float64).damped(damping).solve(b)
    if solution.residual > _SETTLED:
        logger.warning(
            "the merged anchor of %s gives the penalty another gradient than the priors have, by "
            "%.1e of it, after %d iterations; raise rank or damping",
            printable(merged.name),
            solution.residual,
            solution.iterations,
        )
    found = mean + solution.x
    (name, *_), whole = merged.shapes, merged.inputs is None
    values = merged.split(found) if whole else {name: found.T}
    dtypes = {name: value.dtype for name, value in parts[0].anchor.items()}
    return {name: value.to(dtypes[name]).contiguous() for name, value in values.items()}


# --- Provenance ----------------------------------------------------------------------------------


def _provenance(
    origins: Sequence[Provenance], shares: Sequence[float], curvature: Curvature
) -> Provenance:
    merged: dict[str, float] = {}
    for origin, share in zip(origins, shares, strict=True):
        for task, part in (origin.merged or {origin.task: 1.0}).items():
            merged[task] = merged.get(task, 0.0) + share * part
    least = [origin.min_examples for origin in origins]
    published = [number for number in least if number is not None]
    hidden = len(published) == len(origins)
    return Provenance(
        "+".join(origin.task for origin in origins),
        num_examples=sum(origin.num_examples for origin in origins),
        curvature=_joined(origin.curvature for origin in origins) or "",
        labels=_joined(origin.labels for origin in origins),
        sharing=_joined(origin.sharing for origin in origins),
        anchor_metrics={
            name if origin.merged else f"{origin.task}: {name}": value
            for origin in origins
            for name, value in origin.anchor_metrics.items()
        },
        min_examples=min(published) if hidden else None,
        dropped_inputs=_dropped(origins, curvature) if hidden else {},
        min_token_examples=min(origin.min_token_examples for origin in origins),
        merged=merged,
    )


def _joined(values: Iterable[str | None]) -> str | None:
    found = dict.fromkeys(value for value in values if value is not None)
    return "+".join(found) or None


def _dropped(origins: Sequence[Provenance], curvature: Curvature) -> dict[str, int]:
    """Count the tokens that no prior covers; of embeddings that none has, the most left out."""
    dropped: dict[str, int] = {}
    for origin in origins:
        for name, number in origin.dropped_inputs.items():
            dropped[name] = max(number, dropped.get(name, 0))
    for block in curvature.blocks:
        if block.name in dropped:
            (tokens, _), *_ = block.shapes.values()
            dropped[block.name] = tokens - block.shape[1]
    return dropped
