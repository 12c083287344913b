"""Make sure that a prior is whole and belongs to a model; list all that does not fit.

    hf-kfc verify runs/tier1/prior runs/tier1
    hf-kfc verify org/tier1-kfc@v1 org/tier1@v1

MODEL is the one that the prior was made of: a later tier's has moved away from the anchor, and
how far is told as a misfit. The status is 1 if there is one.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PriorError
from ..priors import ConsolidationPrior
from .loading import load_model
from .report import Report, aligned, number

__all__ = ["add_arguments", "report"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes."""
    parser.add_argument("prior", metavar="PRIOR", help="Folder or repository of the prior.")
    parser.add_argument("model", metavar="MODEL", help="Folder or repository of its model.")


def report(options: argparse.Namespace) -> Report:
    """Verify a prior against its model.

    Args:
        options: The parsed command line.

    Raises:
        HfKfcError: The model is missing or damaged.
    """
    values: dict[str, Any] = {"prior": options.prior, "model": options.model}
    try:
        # Loading checks files against their sha256, and tensors for shape, finiteness, symmetry
        # and definiteness.
        prior = ConsolidationPrior.from_pretrained(options.prior, revision=options.revision)
    except PriorError as error:
        return _misfit(values, [str(error)])
    values["prior"] = str(prior.source or options.prior)
    model = load_model(options.model)
    misfits = []
    try:
        prior.check(model)
    except PriorError as error:
        misfits.append(str(error))
    anchor, parameters = _comparable(prior, model)
    values["parameters"], values["ignored"] = len(prior.anchor), list(prior.curvature.ignored)
    values["anchor"] = compared = _compare(anchor, parameters)
    if differing := compared["differing"]:
        misfits.append(
            f"the anchor is not the model's parameters in {len(differing)} of {len(anchor)} (by "
            f"at most {number(max(differing.values()))}): {', '.join(differing)}"
        )
    if misfits:
        return _misfit(values, misfits)
    found = {
        "prior": f"{values['prior']}: files whole, tensors finite, factors symmetric and definite",
        "parameters": f"{len(anchor)} fit {type(model).__name__}, {len(values['ignored'])} ignored",
        "anchor": f"equal to the model's parameters, sha256 {compared['sha256']}",
    }
    return Report(values | {"misfits": []}, aligned(list(found.items()), left=2))


def _misfit(values: dict[str, Any], misfits: list[str]) -> Report:
    lines = [f"{values['prior']} does not fit {values['model']}:", *misfits]
    return Report(values | {"misfits": misfits}, "\n- ".join(lines), misfits)


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


def _compare(anchor: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Any]:
    """Say where two sets of tensors differ, with the largest difference of each."""
    wide = {name: value.to(anchor[name].dtype) for name, value in parameters.items()}
    differing = {
        name: float((value - wide[name]).abs().max())
        for name, value in anchor.items()
        if not torch.equal(value, wide[name])
    }
    return {"sha256": _digest(anchor), "model_sha256": _digest(wide), "differing": differing}


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
