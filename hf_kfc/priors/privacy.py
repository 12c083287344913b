"""What a prior may tell of the data it was estimated on, and leaving the rare tokens out."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..curvature import Block, Curvature
from ..errors import PriorError
from ..values import is_whole
from .base import BasePrior, PriorT

__all__ = [
    "MIN_EXAMPLES",
    "kept_tokens",
    "made_of_rare_tokens",
    "refuse_few_examples",
    "without_rare_inputs",
]

MIN_EXAMPLES = 10
"""In how many examples a token must have been seen for a published prior to cover it."""


def without_rare_inputs(prior: PriorT, min_examples: int = MIN_EXAMPLES) -> PriorT:
    """Leave out of a prior every token that too few examples hold, its row and its anchor.

    The A of an embedding is the frequency of each token in the data, and an anchor that differs
    from the pretrained row tells that its token was seen. The rows left out move freely; so do
    those of tokens never seen, which an undamped curvature does not hold either. Which tokens are
    kept can still be read off the prior, the counts of examples cannot. Its probes stay as they
    are: they are inputs that anyone may have.

    Args:
        prior: With the counts of examples that the estimate made.
        min_examples: In how many examples a token must stand to be kept; 0 keeps all.

    Returns:
        A prior without rare tokens and without the counts; ``provenance.min_examples`` and
        ``provenance.dropped_inputs`` say what was done. Embeddings of which nothing is left are
        ignored.

    Raises:
        PriorError: An embedding's counts of examples are not there, as in every L2 prior.
    """
    _refuse_no_number(min_examples)
    if min_examples and not prior.curvature.num_examples:  # no data was used
        raise PriorError(
            f"prior of task '{prior.task}' is L2, which knows not in how many examples a token was "
            "seen; give min_examples=0 to keep all rows of its embeddings"
        )
    blocks: list[Block] = []
    dropped, ignored = dict(prior.provenance.dropped_inputs), list(prior.curvature.ignored)
    anchor = dict(prior.anchor)
    for block in prior.curvature.blocks:
        if not block.is_embedding:
            blocks.append(block)
            continue
        kept = kept_tokens(prior, block, min_examples)
        (name,) = block.shapes
        dropped[block.name] = dropped.get(block.name, 0) + block.shape[1] - len(kept)
        if not len(kept):
            ignored.append(name)
            del anchor[name]
            continue
        blocks.append(replace(block.of_inputs(kept), input_examples=None))
        anchor[name] = anchor[name][kept]
    curvature = Curvature(tuple(blocks), prior.curvature.num_examples, tuple(sorted(ignored)))
    provenance = replace(prior.provenance, min_examples=min_examples, dropped_inputs=dropped)
    probes = prior.probes
    if probes is not None:  # a sum of all rows would confirm a guess at those left out
        rows = [n for block in prior.curvature.blocks if block.is_embedding for n in block.shapes]
        probes = probes.without_digests(rows)
    return type(prior)(anchor, curvature, provenance, probes)


def kept_tokens(prior: BasePrior, block: Block, min_examples: int) -> torch.Tensor:
    """Return which columns of an embedding's block are of tokens that enough examples hold."""
    _refuse_no_number(min_examples)
    if block.input_examples is not None:
        return torch.nonzero(block.input_examples >= min_examples).flatten()
    already = prior.provenance.min_examples
    if min_examples == 0 or (already is not None and already >= min_examples):
        return torch.arange(block.shape[1])
    raise PriorError(
        f"prior of task '{prior.task}' does not tell in how many examples the tokens of "
        f"{block.name} were seen; estimate it again, or give min_examples={already or 0}"
    )


def _refuse_no_number(min_examples: object) -> None:
    if not is_whole(min_examples):
        raise PriorError(
            f"min_examples {min_examples!r:.40} is no whole number; 0 keeps all tokens"
        )


def made_of_rare_tokens(public: BasePrior) -> Block | None:
    """Return the widest layer whose curvature was made of tokens that were then left out.

    Returns:
        None if no token was left out, or if rare ones were unseen by the estimate.
    """
    origin = public.provenance
    unseen = origin.min_token_examples >= (origin.min_examples or 0)
    if unseen or not any(origin.dropped_inputs.values()):
        return None
    others = [block for block in public.curvature.blocks if not block.is_embedding]
    return max(others, key=lambda block: block.shape[1], default=None)


def refuse_few_examples(public: BasePrior) -> None:
    """Refuse to publish what was made of rare tokens by fewer examples than a layer has inputs.

    The span of that layer's A gives nearly all of them away.

    Raises:
        PriorError: It is so.
    """
    widest, examples = made_of_rare_tokens(public), public.curvature.num_examples
    if widest is not None and examples < widest.shape[1]:
        least = public.provenance.min_examples
        raise PriorError(
            f"prior of task '{public.task}' is of {examples} examples for the {widest.shape[1]} "
            f"inputs of {widest.name}, whose A spans the tokens that would be left out; estimate "
            f"it with min_token_examples={least}, or give min_examples=0 to publish all it tells"
        )
