"""The card of a published prior: what it is, what it was estimated on, and what it may tell."""

from __future__ import annotations

from collections.abc import Iterator

from huggingface_hub import ModelCard, ModelCardData

from ..cards import render
from ..curvature import Block
from ..errors import HubError
from ..hub import Source
from .base import BasePrior
from .content import stored_bytes
from .provenance import summarise_errors

__all__ = ["prior_card"]


def prior_card(
    prior: BasePrior,
    repo_id: str,
    *,
    base_model: str | None = None,
    license_id: str | None = None,
    data_statement: str | None = None,
) -> str:
    """Write the card of a prior.

    Args:
        prior: As it is published: without rare tokens.
        repo_id: The repository that it goes to.
        base_model: The model whose parameters are the anchor, ``"org/name@sha"``; by default what
            the provenance says.
        license_id: The Hub's identifier of the licence.
        data_statement: What the data was and on whose terms, in the publisher's words.

    Returns:
        The card, its metadata included.
    """
    origin = prior.provenance
    link = _pinned(base_model or f"{origin.base_model}@{origin.base_revision}")
    data = ModelCardData(
        library_name="hf_kfc",
        base_model=link.repo_id if link else None,
        base_model_revision=link.sha if link else None,
        license=license_id,
        tags=["hf_kfc", "consolidation-prior", "continual-learning"],
    )
    text = render(
        "prior_card.md",
        repo_id=repo_id,
        origin=origin,
        base_model=link,
        num_estimated=prior.curvature.num_examples,
        layers=list(_layers(prior)),
        ignored=prior.curvature.ignored,
        errors=summarise_errors(origin.approximation_errors),
        parameters=sum(anchor.numel() for anchor in prior.anchor.values()),
        coverage=prior.curvature.coverage,
        data_statement=data_statement,
        probes=None if prior.probes is None else prior.probes.summary(),
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n{text}"))


def _pinned(base_model: str) -> Source | None:
    try:
        return Source.parse(base_model)
    except HubError:  # a folder, or no name at all
        return None


def _layers(prior: BasePrior) -> Iterator[dict[str, str]]:
    """Name each block with its size, that of its curvature as it is stored."""
    for block in prior.curvature.blocks:
        q, p = block.shape
        state = block.operator.state().items()
        size = sum(stored_bytes(f"curvature/{part}", tensor) for part, tensor in state)
        error = prior.provenance.approximation_errors.get(block.name)
        yield {
            "name": block.name,
            "kind": block.operator.kind,
            "outputs": f"{q:,}",
            "inputs": f"{p:,}{_share(block)}",
            "size": f"{size / 1e6:,.2f}",
            "error": "" if error is None else f"{error:.2%}",
        }


def _share(block: Block) -> str:
    if block.inputs is None:
        return ""
    ((all_tokens, *_),) = block.shapes.values()
    return f" ({len(block.inputs):,} of {all_tokens:,} tokens)"
