"""Which tokens could be read off a prior, by whoever holds its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ..curvature import Block
from ..curvature_arguments import Sharing
from ..errors import PriorError
from ..priors import ConsolidationPrior, Provenance

__all__ = ["EmbeddingAudit", "audit_tokens"]


@dataclass(frozen=True)
class EmbeddingAudit:
    """What a prior tells of the tokens of one embedding.

    Args:
        name: Name of its block.
        vocabulary: How many tokens the embedding has.
        covered: How many of them have a row in the prior.
        seen: Tokens whose statistics tell that the data held them, the rarest first.
        moved: Tokens whose anchor is not the base model's row; None without a base model.
        counts: Whether the prior tells in how many examples each token stood.
    """

    name: str
    vocabulary: int
    covered: int
    seen: tuple[int, ...]
    moved: tuple[int, ...] | None
    counts: bool

    @property
    def readable(self) -> tuple[int, ...]:
        """All tokens that could be read off, the rarest first and those only moved last."""
        return tuple(dict.fromkeys((*self.seen, *(self.moved or ()))))


def audit_tokens(
    prior: ConsolidationPrior, base: nn.Module | None = None
) -> tuple[EmbeddingAudit, ...]:
    """Find the tokens that could be read off a prior.

    Args:
        prior: As it is, or is to be, published.
        base: The model that the training began from. It shows which anchors have moved, and which
            parameters of an L2 prior, whose curvature knows no layers, are embeddings.

    Returns:
        One audit for each embedding that is found.

    Raises:
        PriorError: The base model lacks an embedding of the prior, or has another shape of it.
    """
    rows = {} if base is None else _embeddings(base)
    audits = []
    for block in prior.curvature.blocks:
        name = next(iter(block.shapes))
        if block.is_embedding or _of_base(name, rows) is not None:
            moment = _read(block, prior.provenance)
            base_rows = None if base is None else rows
            audits.append(_audit(block, moment, prior.anchor[name], base_rows))
    return tuple(audits)


def _read(block: Block, origin: Provenance) -> Tensor | None:
    """Return how often tokens were looked up [p]; None if the curvature does not tell.

    A tied weight has two products, the embedding's and then the head's. The head scores every
    token: its part, which ranks labels, is above 0 of those that no text had, too.
    """
    terms = block.operator.kronecker_terms()
    if len(terms) == 2 and not origin.merged and origin.sharing != Sharing.CENTRED:
        return terms[0].A
    return block.operator.input_moment()


def _audit(
    block: Block, moment: Tensor | None, anchor: Tensor, base: Mapping[str, Tensor] | None
) -> EmbeddingAudit:
    ((name, shape),) = block.shapes.items()
    tokens = block.tokens
    seen = tokens.new_empty(0)
    if moment is not None:
        order = moment.argsort(stable=True)
        seen = tokens[order[moment[order] > 0]]
    moved = None
    if base is not None:
        row = _of_base(name, base)
        if row is None or tuple(row.shape) != shape:
            found = "no such embedding" if row is None else f"shape {list(row.shape)}"
            raise PriorError(
                f"the base model has {found} for {name} of shape {list(shape)}; give the model "
                "that the training began from"
            )
        moved = tuple(tokens[(anchor != row[tokens].to(anchor.dtype)).any(1)].tolist())
    counts = block.input_examples is not None
    return EmbeddingAudit(block.name, shape[0], len(tokens), tuple(seen.tolist()), moved, counts)


def _embeddings(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}.weight": module.weight.detach()
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    }


def _of_base(name: str, rows: Mapping[str, Tensor]) -> Tensor | None:
    """Find an embedding; a base model saved without a head lacks the first part of the name."""
    return next((row for own, row in rows.items() if f".{name}".endswith(f".{own}")), None)
