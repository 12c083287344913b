"""Anchors that are not stored with a prior: it points at the model whose parameters they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from torch import Tensor

from ..curvature import Block, Curvature
from ..errors import HubError, PriorError
from ..hub import Snapshot, Source, hub_errors_as
from ..hub.commit import siblings
from ..schema import read
from .files import describe, read_files, read_tensors
from .schema import ANCHOR, AnchorEntry, FileEntry, tensors_of

__all__ = ["read_reference", "refer_to_model"]

_WHOLE = "model.safetensors"
_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors", re.ASCII)


def refer_to_model(
    model: Snapshot, curvature: Curvature, tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Make sure that a model's parameters are a prior's anchor, bit by bit.

    Returns:
        What to store in its place: the commit, and the sums of the model's files.
    """
    wanted = curvature.parameters
    files: dict[str, dict[str, Any]] = {}
    found: dict[str, Tensor] = {}
    for name, size in _weights(model).items():
        path = model.fetch(name, size)
        expected = describe(path)
        if not wanted.keys().isdisjoint(expected["tensors"]):
            files[name] = expected
            found |= read_tensors(path, FileEntry(**expected), wanted)
    others = [
        name
        for block in curvature.blocks
        for name in block.shapes
        if name not in found or not _is_anchor(found[name], block, tensors[ANCHOR + name])
    ]
    if others:
        raise PriorError(
            f"{model} is not the prior's anchor: it has another {', '.join(others)} or none; "
            "publish the model as it was when the prior was estimated, or leave anchor out"
        )
    return {"repo_id": model.source.repo_id, "revision": model.source.sha, "files": files}


def read_reference(
    config: Mapping[str, Any], token: str | None, cache_dir: str | Path | None
) -> tuple[dict[str, Tensor], list[str]]:
    """Read the parameters that a prior's description, untrusted, points at, if it does.

    Returns:
        Parameters by name, and one phrase for each file that is missing or damaged.
    """
    if config.get("anchor") is None:
        return {}, []
    entry, problems = read(AnchorEntry, config["anchor"], "the anchor")
    if entry is None:
        return {}, problems
    try:
        model = Snapshot(Source(entry.repo_id, entry.revision), token, cache_dir)
    except HubError as error:
        return {}, [str(error)]
    wanted = {name.removeprefix(ANCHOR) for name in tensors_of(config) if name.startswith(ANCHOR)}
    found, damages = read_files(model, entry.files, _WEIGHTS, wanted, "a model")
    damages = [f"{damage} (the anchor, from {model})" for damage in damages]
    damages += [
        f"parameter {name} of {model} is {value.dtype}, expected a floating-point type"
        for name, value in found.items()
        if not value.is_floating_point()
    ]
    return found, damages


def _weights(model: Snapshot) -> dict[str, int]:
    """List the model's files of weights with their sizes; one whole file goes before its parts."""
    source = model.source
    with hub_errors_as(f"{model} cannot be read: {{reason}}"):
        info = HfApi(token=model.token).model_info(
            source.repo_id, revision=source.sha, files_metadata=True
        )
    there = siblings(info)
    sizes = {name: own.size or 0 for name, own in there.items() if _WEIGHTS.fullmatch(name)}
    if not sizes:
        raise PriorError(f"{model} has no {_WHOLE}; save the model as safetensors")
    return {_WHOLE: sizes[_WHOLE]} if _WHOLE in sizes else sizes


def _is_anchor(parameter: Tensor, block: Block, anchor: Tensor) -> bool:
    """Compare in float32, where 0 and -0 differ: the prior's fingerprint tells them apart too."""
    if block.inputs is not None and len(parameter) > int(block.inputs[-1]):
        parameter = parameter[block.inputs.to(parameter.device)]
    if parameter.shape != anchor.shape:
        return False
    return torch.equal(parameter.float().contiguous().view(torch.int32), anchor.view(torch.int32))
