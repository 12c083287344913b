"""Show what a prior is: where it comes from, its layers, their sizes and eigenvalues."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..curvature import Block, Operator
from ..priors import ConsolidationPrior
from ..priors.content import stored_bytes
from ..priors.provenance import summarise_errors
from .options import DAMPING
from .report import Report, Table, megabytes, number

__all__ = ["LayerSummary", "report", "spectrum_of", "summarise_layers"]

_FLOAT32 = 4
_POWER_STEPS = 1000
_POWER_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of a block's F in a few numbers.

    Args:
        largest: The largest.
        median: The middle one; None where the eigenvalues are known only with a large matrix, as
            those of a sum of Kronecker products.
        effective_rank: tr(F)² / tr(F²): how many directions carry the curvature; 0 if none does.
        condition: Largest over smallest once F is damped; None of F = 0 and of such a sum.
    """

    largest: float
    median: float | None
    effective_rank: float
    condition: float | None


@dataclass(frozen=True)
class LayerSummary:
    """One block of a prior.

    Args:
        name: Its name.
        operator: Its kind of curvature.
        shape: (q, p): outputs, and inputs with the bias.
        parameters: How many parameters it covers.
        bytes: Size of its anchor and curvature as stored; what layers share counts for the first.
        tokens_kept: Of an embedding, the share of its tokens that are covered.
        error: Of a merged or compressed prior, by how much its F is off at most.
        spectrum: The eigenvalues of its curvature.
    """

    name: str
    operator: str
    shape: tuple[int, int]
    parameters: int
    bytes: int
    tokens_kept: float | None
    error: float | None
    spectrum: Spectrum


def report(options: argparse.Namespace) -> Report:
    """Inspect a prior."""
    prior = ConsolidationPrior.from_pretrained(options.prior)
    layers = summarise_layers(prior)
    size = sum(layer.bytes for layer in layers)
    covered = _FLOAT32 * sum(prod(shape) for shape in prior.curvature.parameters.values())
    values = {
        "prior": str(prior.source or options.prior),
        "fingerprint": prior.fingerprint,
        "provenance": prior.provenance.to_dict(),
        "num_curvature_examples": prior.curvature.num_examples,
        "coverage": prior.curvature.coverage,
        "ignored": list(prior.curvature.ignored),
        "probes": None if prior.probes is None else prior.probes.summary(),
        "bytes": size,
        "bytes_of_parameters": covered,
        "damping": DAMPING,
        "layers": [asdict(layer) for layer in layers],
    }
    names = ("prior", "fingerprint", "provenance", "num_curvature_examples", "coverage", "ignored")
    facts = Table(list(_facts({name: values[name] for name in names})), left=2)
    total = (
        f"{megabytes(size)} MB in all, {size / covered:.2f} times the {megabytes(covered)} MB of "
        f"the parameters covered; condition with damping {DAMPING}"
    )
    return Report(values, [facts, *_probes(prior), _table(layers), total])


def _probes(prior: ConsolidationPrior) -> list[Table]:
    if prior.probes is None:
        return []
    told = prior.probes.summary()
    told["MB"] = megabytes(told.pop("bytes"))
    return [Table([(f"probes: {name}", text) for name, text in _facts(told)], left=2)]


def summarise_layers(prior: ConsolidationPrior) -> list[LayerSummary]:
    """Summarise every block of a prior."""
    counted = set[int]()
    return [
        LayerSummary(
            block.name,
            block.operator.kind,
            block.shape,
            prod(block.shape),
            sum(_new_bytes(name, tensor, counted) for name, tensor in _tensors(prior, block)),
            block.shape[1] / block.shapes[weight][0] if block.is_embedding else None,
            prior.provenance.approximation_errors.get(block.name),
            spectrum_of(block.operator, block.shape),
        )
        for block in prior.curvature.blocks
        for weight in list(block.shapes)[:1]
    ]


def _tensors(prior: ConsolidationPrior, block: Block) -> Iterator[tuple[str, Tensor]]:
    yield from ((f"anchor/{name}", prior.anchor[name]) for name in block.shapes)
    rows = {"inputs": block.inputs, "input_examples": block.input_examples}
    for part, tensor in (block.operator.state() | rows).items():
        if tensor is not None:
            yield f"curvature/{part}", tensor


def _new_bytes(name: str, tensor: Tensor, counted: set[int]) -> int:
    if id(tensor) in counted:
        return 0
    counted.add(id(tensor))
    return stored_bytes(name, tensor)


def _facts(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Turn values into rows of a name and a text."""
    for name, value in values.items():
        if name == "provenance":
            yield from _facts(value)
        elif name == "approximation_errors":
            yield name, summarise_errors(value)
        elif isinstance(value, dict):
            yield name, ", ".join(f"{key} {item}" for key, item in value.items()) or "-"
        elif isinstance(value, list):
            yield name, ", ".join(value) or "-"
        else:
            yield name, "-" if value in (None, "") else str(value)


def _table(layers: list[LayerSummary]) -> Table:
    heading = ("layer", "curvature", "shape", "parameters", "MB", "tokens kept", "error")
    rows: list[tuple[str, ...]] = [
        (*heading, "largest", "median", "effective rank", "condition"),
    ]
    rows += [
        (
            layer.name,
            layer.operator,
            "x".join(map(str, layer.shape)),
            f"{layer.parameters:,}",
            megabytes(layer.bytes),
            "-" if layer.tokens_kept is None else f"{layer.tokens_kept:.1%}",
            "-" if layer.error is None else f"{layer.error:.2%}",
            number(layer.spectrum.largest),
            number(layer.spectrum.median),
            number(layer.spectrum.effective_rank),
            number(layer.spectrum.condition),
        )
        for layer in layers
    ]
    return Table(rows, left=2)


def spectrum_of(operator: Operator, shape: tuple[int, int]) -> Spectrum:
    """Summarise the eigenvalues of the curvature of a block, its shape being (q, p)."""
    operator = operator.to(dtype=torch.float64)
    total, squared = float(operator.trace(shape)), float(operator.inner(operator, shape))
    rank = total**2 / squared if squared else 0.0
    values, damped = operator.spectrum(shape), operator.damped(DAMPING).spectrum(shape)
    if values is None or damped is None:
        return Spectrum(_largest(operator, shape), None, rank, None)
    lowest = float(damped.min())
    condition = float(damped.max()) / lowest if rank and lowest > 0 else None
    values = values.clamp(min=0)
    return Spectrum(float(values.max()), float(values.median()), rank, condition)


def _largest(operator: Operator, shape: tuple[int, int]) -> float:
    """Find the largest eigenvalue by power iteration."""
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(shape, dtype=torch.float64, generator=generator)
    largest = 0.0
    for _ in range(_POWER_STEPS):
        vector = operator.apply(vector / vector.norm())
        before, largest = largest, float(vector.norm())
        if largest - before <= _POWER_TOLERANCE * largest:
            break
    return largest
