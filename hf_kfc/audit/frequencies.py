"""Frequencies that a prior tells: of tokens, of positions (the lengths of texts) and of labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isnan
from typing import Any

import torch
from torch import Tensor, nn

from ..curvature import Block, Layout, survey
from ..curvature.likelihood import Family, Outputs
from ..curvature.modes import frozen
from ..curvature.objective import Forward, PositionMask, default_forward, default_position_mask
from ..priors import ConsolidationPrior
from .reading import batches_of, read_layers

__all__ = ["Frequencies", "frequencies_told"]

_APPLIED = 256  # classes of a head whose G is read by multiplying, for want of a factor


@dataclass(frozen=True)
class Frequencies:
    """How well a part of a prior ranks by how often things stand in the data.

    Args:
        what: ``inputs of <embedding>`` (tokens; of positions: how many texts are that long), or
            ``labels by <layer>``.
        number: How many of them the prior tells of and the data holds.
        correlation: Spearman's ρ of what is told and the true counts; 1 tells the ranking.
    """

    what: str
    number: int
    correlation: float


def frequencies_told(
    prior: ConsolidationPrior,
    model: nn.Module,
    members: Any,
    data_collator: Callable[[list[Any]], Mapping[str, Tensor]],
    *,
    forward: Forward = default_forward,
    position_mask: PositionMask = default_position_mask,
    batch_size: int = 32,
) -> list[Frequencies]:
    """Hold what a prior tells of frequencies against the data.

    The A of an embedding is told by whoever reads the file. That of a label is the diagonal of the
    last layer's G: each example adds to its own class's entry most.

    Args:
        prior: The prior, as it is or is to be published.
        model: At the prior's anchor.
        members: Examples that it was estimated on, by index, with a length.
        data_collator: Makes a batch of a list of examples.
        forward: Runs the model on a batch; the default expects a ``logits`` output.
        position_mask: Says which positions of a batch count.
        batch_size: Examples per forward pass; does not change the result.

    Returns:
        One result for each embedding, and one for the last layer if its outputs are the classes;
        without those that there are less than three of.
    """
    device = next(model.parameters()).device
    layers = {layer.name: layer for layer in survey(model, prior.curvature.ignored).layers}
    blocks = {b.name: b for b in prior.curvature.blocks if b.name in layers}
    told = {name: _told(block) for name, block in blocks.items() if block.is_embedding}
    counts = {name: torch.zeros(len(own)) for name, own in told.items()}
    labels = torch.zeros(0)
    head: str | None = None
    with frozen(model), torch.no_grad():
        batches = batches_of(members, data_collator, batch_size, device)
        used = [layers[name] for name in blocks]
        for _, outputs, read in read_layers(model, used, batches, forward, position_mask):
            for name in told:
                own = read[name].of(nn.Embedding)
                ids = own.a[own.valid & (own.a >= 0)].cpu()
                counts[name] += torch.bincount(ids, minlength=len(counts[name]))
            if outputs.family is Family.CATEGORICAL:
                own_labels = _labels(outputs)
                labels = own_labels if not len(labels) else labels + own_labels
                called = [name for name in blocks if read[name].uses]
                head = _head(blocks, called, len(own_labels)) if head is None else head
    found = [_correlated(f"inputs of {n}", own, counts[n], own > 0) for n, own in told.items()]
    if head is not None and (G := _output_moment(blocks[head])) is not None:
        found.append(
            _correlated(f"labels by {head}", G, labels, torch.ones_like(G, dtype=torch.bool))
        )
    return [own for own in found if own is not None]


def _told(block: Block) -> Tensor:
    """Return what the prior tells of each token of an embedding [V]; 0 of those it leaves out."""
    (shape,) = block.shapes.values()
    moment = block.operator.input_moment()
    told = torch.zeros(shape[0])
    if moment is not None:
        told[block.tokens] = moment.float().cpu()
    return told


def _labels(outputs: Outputs) -> Tensor:
    """Count the labels of a batch [K]."""
    decided = outputs.labels[outputs.decided]
    return torch.bincount(decided.flatten().cpu(), minlength=outputs.logits.shape[-1]).float()


def _head(blocks: Mapping[str, Block], called: list[str], classes: int) -> str | None:
    """Find the layer whose outputs are the classes; None if there is none."""
    fitting = [
        name
        for name in called
        if blocks[name].layout is not Layout.ELEMENTWISE and blocks[name].shape[0] == classes
    ]
    return fitting[-1] if fitting else None


def _output_moment(block: Block) -> Tensor | None:
    """Return what is proportional to G's diagonal [q]; None where it would take too long."""
    q, p = block.shape
    if terms := block.operator.kronecker_terms():
        sizes = [_diagonal(t.G) * float(_diagonal(t.A).sum()) for t in terms]
        return torch.stack(sizes).sum(0).cpu()
    if q > _APPLIED:
        return None
    return torch.tensor(list(_applied(block, q, p)))


def _applied(block: Block, q: int, p: int) -> Iterator[float]:
    for row in range(q):
        delta = torch.zeros(q, p)
        delta[row] = 1.0
        yield float((delta * block.operator.apply(delta)).sum())


def _diagonal(factor: Tensor) -> Tensor:
    return factor if factor.ndim == 1 else factor.diagonal()


def _correlated(what: str, told: Tensor, counts: Tensor, known: Tensor) -> Frequencies | None:
    from scipy.stats import spearmanr  # noqa: PLC0415 - takes a second

    known = known & (counts > 0)
    if int(known.sum()) < 3:
        return None
    correlation = float(spearmanr(told[known].numpy(), counts[known].numpy()).statistic)
    return None if isnan(correlation) else Frequencies(what, int(known.sum()), correlation)
