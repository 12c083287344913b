"""Make sure that a prior is whole and belongs to a model; list all that does not fit."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PriorError, ProbeError
from ..priors import ConsolidationPrior
from ..probes import digest_of
from .loading import load_model
from .report import Report, Table, number

__all__ = ["report"]


def report(options: argparse.Namespace) -> Report:
    """Verify a prior against its model."""
    values: dict[str, Any] = {"prior": options.prior, "model": options.model}
    try:
        # Loading checks files against their sha256, and tensors for shape, finiteness, symmetry
        # and definiteness.
        prior = ConsolidationPrior.from_pretrained(options.prior)
    except PriorError as error:
        return _refused(values, [str(error)])
    values["prior"] = str(prior.source or options.prior)
    model = load_model(options.model)
    problems = []
    try:
        prior.check(model)
    except PriorError as error:
        problems.append(str(error))
    anchor, parameters = _comparable(prior, model)
    values["parameters"], values["ignored"] = len(prior.anchor), list(prior.curvature.ignored)
    differing = _differing(anchor, parameters)
    values["anchor"] = {"differing": differing}
    if differing:
        problems.append(
            f"the anchor is not the model's parameters in {len(differing)} of {len(anchor)} (by "
            f"at most {number(max(differing.values()))}): {', '.join(differing)}"
        )
    problems += _other_probes(prior, model)
    if problems:
        return _refused(values, problems)
    found = {
        "prior": f"{values['prior']}: files whole, tensors finite, factors symmetric and definite",
        "parameters": f"{len(anchor)} fit {type(model).__name__}, {len(values['ignored'])} ignored",
        "anchor": "equal to the model's parameters",
    }
    if prior.probes is not None:
        found["probes"] = f"{len(prior.probes)}, whose outputs are of the same parameters"
    return Report(values | {"problems": []}, [Table(list(found.items()), left=2)])


def _refused(values: dict[str, Any], problems: list[str]) -> Report:
    lines = [f"{values['prior']} does not fit {values['model']}:"]
    lines += [f"- {problem}" for problem in problems]
    return Report(values | {"problems": problems}, lines, problems)


def _other_probes(prior: ConsolidationPrior, model: nn.Module) -> list[str]:
    """Say for which parameters the probes' outputs are of another model."""
    if prior.probes is None:
        return []
    parameters = dict(model.named_parameters())
    others = [
        name
        for name, digest in prior.probes.anchor_digests.items()
        if name not in parameters or digest_of(parameters[name]) != digest
    ]
    try:
        prior.probes.check(model)
    except ProbeError as error:
        return [str(error)]
    return [f"the probes are of a model with another {', '.join(others)}"] if others else []


def _comparable(
    prior: ConsolidationPrior, model: nn.Module
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the anchors, and what they cover of the model's parameters, of those that fit."""
    values = {name: value.detach() for name, value in model.named_parameters()}
    parameters: dict[str, Tensor] = {}
    for block in prior.curvature.blocks:
        if all(n in values and tuple(values[n].shape) == s for n, s in block.shapes.items()):
            parameters |= block.covered(values)
    return {name: prior.anchor[name] for name in parameters}, parameters


def _differing(anchor: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, float]:
    """Return where two sets of tensors differ, with the largest difference of each."""
    wide = {name: value.to(anchor[name].dtype) for name, value in parameters.items()}
    return {
        name: float((value - wide[name]).abs().nan_to_num(torch.finfo(value.dtype).max).max())
        for name, value in anchor.items()
        if not torch.equal(value, wide[name])
    }
