"""A membership test: can a prior's statistics tell the examples it was estimated on from others?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from ..curvature import Block, Layout, survey
from ..curvature.accumulators import LayerBatch
from ..curvature.discovery import Layer
from ..curvature.layers import StackedRule
from ..curvature.modes import frozen
from ..curvature.objective import (
    Forward,
    PositionMask,
    default_forward,
    default_position_mask,
)
from ..errors import PriorError
from ..priors import ConsolidationPrior
from .reading import ReadProbes, batches_of, read_layers

__all__ = ["Separation", "area_under_curve", "membership_auc"]

# Enough for directions that no member used to cost much, and above the rounding of float32 factors.
_DAMPING = 1e-3
_NORMAL_95 = 1.959964


@dataclass(frozen=True)
class Separation:
    """How well one score tells members from non-members.

    Args:
        score: ``loss`` (needs the model alone), ``tokens in probes``, ``pairs of tokens in
            probes``, ``tokens of <layer>`` or ``inputs of <layer>``.
        auc: Probability that a member scores above a non-member; 0.5 tells nothing.
        low: Lower end of its 95 % confidence interval.
        high: Upper end.
    """

    score: str
    auc: float
    low: float
    high: float


def membership_auc(
    prior: ConsolidationPrior,
    model: nn.Module,
    members: Any,
    non_members: Any,
    data_collator: Callable[[list[Any]], Mapping[str, Tensor]],
    *,
    forward: Forward = default_forward,
    position_mask: PositionMask = default_position_mask,
    batch_size: int = 32,
) -> list[Separation]:
    """Attack a prior: tell the examples it was estimated on from others.

    Of a prior with probes, the shares of an example's tokens and of its pairs of neighbours that
    stand in them are scores: who has the prior can read the probes. Two more scores need the prior:
    of an embedding, the share of the example's tokens that it has seen; of any other layer, minus
    the leverage aᵀ M⁻¹ a of its inputs, mean over positions, where M is the second moment of inputs
    that the prior holds. Members shaped M, so theirs is lower, and a direction that no member used
    costs most. The model's loss, which needs no prior, is what to hold them against. If non-members
    come from another distribution, that is told too.

    Args:
        prior: The prior, as it is or is to be published.
        model: At the prior's anchor.
        members: Examples that it was estimated on, by index, with a length.
        non_members: Examples of the same kind that it was not.
        data_collator: Makes a batch of a list of examples.
        forward: Runs the model on a batch; the default expects a ``logits`` output.
        position_mask: Says which positions of a batch count.
        batch_size: Examples per forward pass; does not change the result.

    Returns:
        One result for the loss, two for probes, and one for each layer whose inputs the prior
        knows.

    Raises:
        PriorError: The prior does not fit the model, or there are less than two examples.
    """
    _refuse_few(members, non_members)
    prior.check(model)
    device = next(model.parameters()).device
    known = {layer.name: layer for layer in survey(model, prior.curvature.ignored).layers}
    blocks = [block for block in prior.curvature.blocks if block.name in known]
    found = {block.name: _weights(block, known[block.name]) for block in blocks}
    weights = {name: own.to(device) for name, own in found.items() if own is not None}
    layers = [known[name] for name in weights]
    probes = None if prior.probes is None else ReadProbes(prior.probes)

    def scores_of(examples: Any) -> dict[str, Tensor]:
        """Score every example, higher where it looks more like a member; shape [N] by name."""
        batches = batches_of(examples, data_collator, batch_size, device)
        scores: dict[str, list[Tensor]] = defaultdict(list)
        for batch, outputs, read in read_layers(model, layers, batches, forward, position_mask):
            scores["loss"].append(-outputs.losses())
            for name, own in probes.scores(batch) if probes is not None else ():
                scores[name].append(own)
            for name, inputs in read.items():
                what, own = _score(inputs, weights[name])
                scores[f"{what} of {name}"].append(own)
        return {name: torch.cat(parts) for name, parts in scores.items()}

    with frozen(model), torch.no_grad():
        inside, outside = scores_of(members), scores_of(non_members)
    return [Separation(name, *area_under_curve(inside[name], outside[name])) for name in inside]


def area_under_curve(positives: Tensor, negatives: Tensor) -> tuple[float, float, float]:
    """Return the AUC of two samples of a score, with a 95 % interval (DeLong et al. 1988).

    The interval is that of a large sample: at an AUC of 0 or 1 it has no width.

    Args:
        positives: Scores that should be the higher ones, shape [m].
        negatives: The others, shape [n].

    Returns:
        The AUC and both ends of the interval.

    Raises:
        PriorError: One of the samples has less than two scores, or NaN among them.
    """
    _refuse_few(positives, negatives)
    for name, scores in (("members", positives), ("non-members", negatives)):
        if unknown := int(scores.isnan().sum()):
            raise PriorError(
                f"the score is NaN for {unknown} of {len(scores)} {name}; look at their inputs "
                "and the model's outputs"
            )
    above = _share_below(positives, negatives)
    below = _share_below(negatives, positives)
    auc = float(above.mean())
    deviation = sqrt(float(above.var()) / len(above) + float(below.var()) / len(below))
    reach = _NORMAL_95 * deviation
    return auc, max(0.0, auc - reach), min(1.0, auc + reach)


def _refuse_few(members: Sized, non_members: Sized) -> None:
    if min(len(members), len(non_members)) < 2:
        raise PriorError(
            f"{len(members)} members and {len(non_members)} non-members are too few for a "
            "confidence interval; give at least two of each"
        )


def _share_below(scores: Tensor, others: Tensor) -> Tensor:
    """For each score, the share of the others that are below it; equal ones count half."""
    ordered = others.double().sort().values
    scores = scores.double()
    less = torch.searchsorted(ordered, scores)
    not_more = torch.searchsorted(ordered, scores, right=True)
    return (less + not_more).double() / (2 * len(others))


def _score(read: LayerBatch, weights: Tensor) -> tuple[str, Tensor]:
    """Score examples by what a layer read of them; also say what that is."""
    rule = read.layer.rule
    if rule.diagonal_inputs:
        read = read.of(nn.Embedding)  # an output layer may share the weight
        return "tokens", _coverage(weights, read.a, read.valid)
    if isinstance(rule, StackedRule):
        return "inputs", -_leverage_by_part(weights, read, rule)
    return "inputs", -_leverage(weights, read.a, read.valid)


def _weights(block: Block, layer: Layer) -> Tensor | None:
    """Return which tokens were seen, [V], or the inverse of M, [p, p] or its diagonal [p].

    Of groups or experts it is the inverse of each part's M, [n, p, p] or [n, p].
    """
    moment = block.operator.input_moment()
    if moment is None or block.layout is Layout.ELEMENTWISE:
        return None
    if isinstance(layer.rule, StackedRule):
        parts = layer.rule.number_of_parts(next(iter(layer.modules.values())))
        return _inverses(block.operator.moments_by_part(parts, block.shape))
    if block.is_embedding:
        (shape,) = block.shapes.values()
        seen = torch.zeros(shape[0])
        seen[block.tokens] = (moment > 0).to(seen)
        return seen
    return _inverses(moment[None])[0]


def _inverses(moments: Tensor) -> Tensor:
    """Invert each M [n, p, p], or its diagonal [n, p]; inputs of a part without any cost most."""
    moments = moments.double()
    if moments.ndim == 2:
        return (moments + _DAMPING * moments.mean()).reciprocal().float()
    shift = _DAMPING * moments.diagonal(dim1=1, dim2=2).mean()
    inverses: Tensor = torch.linalg.inv(moments + shift * torch.eye(moments.shape[-1]).to(moments))
    return inverses.float()


def _coverage(seen: Tensor, ids: Tensor, valid: Tensor) -> Tensor:
    """Return the share of tokens [N, R] that were seen [V], at positions that count; shape [N]."""
    valid = valid & (ids >= 0)
    return (seen[ids.clamp(min=0)] * valid).sum(1) / valid.sum(1).clamp(min=1)


def _leverage(inverse: Tensor, a: Tensor, valid: Tensor) -> Tensor:
    """Return aᵀ M⁻¹ a of inputs [N, R, p], mean over the positions that count; shape [N]."""
    return (_costs(inverse, a) * valid).sum(1) / valid.sum(1).clamp(min=1)


def _leverage_by_part(inverses: Tensor, batch: LayerBatch, rule: StackedRule) -> Tensor:
    """Return the same of each group's or expert's inputs, mean over all that it counts for; [N]."""
    found = []
    for a, valid in zip(torch.split(batch.a, 1), torch.split(batch.valid, 1), strict=True):
        rows = rule.inputs_by_part(a, valid, len(inverses), average=False)
        costs = torch.cat([_costs(inv, own) for inv, own in zip(inverses, rows, strict=True)])
        found.append(costs.sum() / max(1, len(costs)))
    return torch.stack(found)


def _costs(inverse: Tensor, a: Tensor) -> Tensor:
    """Return aᵀ M⁻¹ a of inputs [..., p]."""
    inverse = inverse.to(a.dtype)
    return a.square() @ inverse if inverse.ndim == 1 else ((a @ inverse) * a).sum(-1)
