"""Show how two priors differ: provenance, layers, curvature and anchors."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..curvature import Block, relative_difference
from ..priors import ConsolidationPrior
from .report import Report, Table, number

__all__ = ["BlockDifference", "compare_blocks", "report"]


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


def report(options: argparse.Namespace) -> Report:
    """Compare two priors."""
    a, b = (ConsolidationPrior.from_pretrained(name) for name in (options.a, options.b))
    names_a, names_b = ({block.name for block in prior.curvature.blocks} for prior in (a, b))
    values: dict[str, Any] = {
        "a": str(a.source or options.a),
        "b": str(b.source or options.b),
        "equal": a.fingerprint == b.fingerprint,
        "provenance": _differing(a.provenance.to_dict(), b.provenance.to_dict()),
        "probes": _differing(_probes(a), _probes(b)),
        "only_in_a": sorted(names_a - names_b),
        "only_in_b": sorted(names_b - names_a),
        "layers": [asdict(block) for block in compare_blocks(a, b)],
    }
    return Report(values, _parts(values))


def compare_blocks(first: ConsolidationPrior, second: ConsolidationPrior) -> list[BlockDifference]:
    """Compare the blocks that two priors have in common; differences are relative to the first."""
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
        tokens, other_tokens = block.tokens, other.tokens
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


def _probes(prior: ConsolidationPrior) -> dict[str, Any]:
    return {} if prior.probes is None else prior.probes.summary()


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, list[Any]]:
    pairs = {name: [first.get(name), second.get(name)] for name in {**first, **second}}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _parts(values: Mapping[str, Any]) -> list[Table | str]:
    if values["equal"] and not values["provenance"]:
        return [f"{values['a']} and {values['b']} are equal"]
    fields = [(name, str(a), str(b)) for name, (a, b) in values["provenance"].items()]
    fields += [(f"probes: {name}", str(a), str(b)) for name, (a, b) in values["probes"].items()]
    parts: list[Table | str] = [Table([("", values["a"], values["b"]), *fields], left=3)]
    for where in ("a", "b"):
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
    return [*parts, Table([heading, *rows], left=2)] if rows else parts
