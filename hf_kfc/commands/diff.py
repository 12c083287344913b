"""Show how two priors differ: provenance, layers, curvature and anchors.

    hf-kfc diff runs/tier1/prior runs/tier2/prior
    hf-kfc diff org/tier1-kfc@v1 org/tier1-kfc@v2 --json

Differences are relative to the first prior: of curvatures in the Frobenius norm of F, whatever
their kinds. Embeddings are compared on the tokens that both cover.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..curvature import Block, relative_difference
from ..priors import ConsolidationPrior
from .report import Report, aligned, number

__all__ = ["BlockDifference", "add_arguments", "compare_blocks", "report"]


@dataclass(frozen=True)
class BlockDifference:
    """How one block differs between two priors.

    Args:
        name: Its name.
        curvature: ‖F − F'‖ / ‖F‖; None of F = 0, or of what cannot be compared.
        anchor: ‖θ − θ'‖ / ‖θ‖ likewise.
        largest: Largest difference of a parameter.
        remark: Why it cannot be compared, or on which part it is.
    """

    name: str
    curvature: float | None = None
    anchor: float | None = None
    largest: float | None = None
    remark: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("first", metavar="PRIOR", help="Folder or repository of a prior.")
    parser.add_argument("second", metavar="PRIOR", help="The one to hold against it.")


def report(options: argparse.Namespace) -> Report:
    """Compare two priors.

    Args:
        options: The parsed command line.

    Raises:
        HfKfcError: A prior is missing or damaged.
    """
    priors = [
        ConsolidationPrior.from_pretrained(name, revision=options.revision)
        for name in (options.first, options.second)
    ]
    names = [{block.name for block in prior.curvature.blocks} for prior in priors]
    values: dict[str, Any] = {
        "first": str(priors[0].source or options.first),
        "second": str(priors[1].source or options.second),
        "equal": priors[0].fingerprint == priors[1].fingerprint,
        "provenance": _differing(*(prior.provenance.to_dict() for prior in priors)),
        "only_in_first": sorted(names[0] - names[1]),
        "only_in_second": sorted(names[1] - names[0]),
        "layers": [asdict(block) for block in compare_blocks(*priors)],
    }
    return Report(values, _text(values))


def compare_blocks(first: ConsolidationPrior, second: ConsolidationPrior) -> list[BlockDifference]:
    """Compare the blocks that two priors have in common.

    Args:
        first: What the differences are relative to.
        second: The other prior.
    """
    others = {block.name: block for block in second.curvature.blocks}
    return [
        _compare((block, first.anchor), (others[block.name], second.anchor))
        for block in first.curvature.blocks
        if block.name in others
    ]


def _compare(
    first: tuple[Block, Mapping[str, Tensor]], second: tuple[Block, Mapping[str, Tensor]]
) -> BlockDifference:
    (block, anchor), (other, other_anchor) = first, second
    if (dict(block.shapes), block.layout) != (dict(other.shapes), other.layout):
        return BlockDifference(block.name, remark="not comparable: other parameters or shapes")
    remark, matrix, other_matrix = "", block.join(anchor), other.join(other_anchor)
    if block.inputs is not None or other.inputs is not None:
        tokens, other_tokens = _tokens(block), _tokens(other)
        kept = torch.isin(tokens, other_tokens).nonzero().flatten()
        other_kept = torch.isin(other_tokens, tokens).nonzero().flatten()
        if not len(kept):
            return BlockDifference(block.name, remark="not comparable: no token in common")
        remark = f"{len(kept):,} tokens of {len(tokens):,} and {len(other_tokens):,}"
        block, other = block.of_inputs(kept), other.of_inputs(other_kept)
        matrix, other_matrix = matrix[:, kept], other_matrix[:, other_kept]
    delta, size = (matrix - other_matrix).double(), float(matrix.double().norm())
    return BlockDifference(
        block.name,
        relative_difference(block.operator, other.operator, block.shape),
        float(delta.norm()) / size if size else None,
        float(delta.abs().max()),
        remark,
    )


def _tokens(block: Block) -> Tensor:
    if block.inputs is not None:
        return block.inputs
    return torch.arange(block.shape[1])


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {name: [value, second[name]] for name, value in first.items() if value != second[name]}


def _text(values: Mapping[str, Any]) -> str:
    if values["equal"] and not values["provenance"]:
        return f"{values['first']} and {values['second']} are equal"
    fields = [(name, str(a), str(b)) for name, (a, b) in values["provenance"].items()]
    parts = [aligned([("", values["first"], values["second"]), *fields], left=3)]
    for where in ("first", "second"):
        if names := values[f"only_in_{where}"]:
            parts.append(f"only in {values[where]}: {', '.join(names)}")
    heading = ("layer", "compared", "‖F - F'‖ / ‖F‖", "‖θ - θ'‖ / ‖θ‖", "largest |θ - θ'|")
    rows = [
        (
            layer["name"],
            layer["remark"] or "all",
            *(number(layer[key]) for key in ("curvature", "anchor", "largest")),
        )
        for layer in values["layers"]
    ]
    if rows:
        parts.append(aligned([heading, *rows], left=2))
    return "\n\n".join(parts)
