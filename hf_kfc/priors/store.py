"""Saving priors and loading them, from folders and from the Hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import HubError, PriorError
from ..files import path_of
from ..hub import Snapshot, Source
from .base import BasePrior, PriorT
from .card import prior_card
from .content import fingerprint_of, from_content, to_content
from .files import CONFIG_LIMIT, CONFIG_NAME, read_prior_files, write_prior_files
from .references import read_reference, refer_to_model
from .schema import ANCHOR

__all__ = ["load", "save_pretrained"]

logger = logging.getLogger(__name__)

_REPOSITORY = re.compile(r"(?P<repo_id>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>.+))?", re.ASCII)


def save_pretrained(
    prior: BasePrior,
    directory: str | Path,
    *,
    max_shard_size: int | str = "5GB",
    anchor: str | None = None,
    card: str | None = None,
    token: str | None = None,
) -> None:
    """Write the prior to a folder: safetensors, a ``config.json`` and its card, a README.

    The files are written under another name and then moved, so the folder is either whole
    or not there. Tensors are stored in float32 (curvature in bfloat16 stays so), without
    damping.

    Args:
        directory: The folder; an older prior there is replaced, its card too.
        max_shard_size: Size above which the tensors are split into several files.
        anchor: ``"org/model@<full hash>"``, a model on the Hub whose parameters are the
            anchor: it is pointed at, and not stored again.
        card: Text of the README; by default what the prior tells of itself.
        token: Access token for that model; by default the one logged in with.

    Raises:
        PriorError: The folder holds something other than a prior, or the model is not the
            anchor.
        HubError: That model cannot be read.
    """
    directory = path_of(directory, PriorError)
    config, tensors = to_content(prior.anchor, prior.curvature, prior.provenance, prior.probes)
    config["fingerprint"] = fingerprint_of(config, tensors)
    if anchor is not None:
        model = Snapshot(Source.parse(anchor), token)
        config["anchor"] = refer_to_model(model, prior.curvature, tensors)
        tensors = {name: t for name, t in tensors.items() if not name.startswith(ANCHOR)}
    if not isinstance(card, str | None):
        raise PriorError(f"card is a {type(card).__name__}; give its text, or None for our own")
    card = prior_card(prior, directory.name, base_model=anchor) if card is None else card
    write_prior_files(directory, config, tensors, max_shard_size, card)


def load(
    kind: type[PriorT],
    name_or_path: str | Path,
    revision: str | None,
    layers: str | Sequence[str] | None,
    token: str | None,
    cache_dir: str | Path | None,
) -> PriorT:
    """Load a prior of a kind from a folder or the Hub, and refuse what is not as it was saved."""
    place = _find(name_or_path, revision, token, cache_dir)
    config, tensors, damages = read_prior_files(place, layers)
    try:
        model, more = read_reference(config, token, cache_dir)
        prior = kind(*from_content(config, tensors, [*damages, *more], model=model))
    except PriorError as error:
        raise PriorError(f"prior at {place} cannot be loaded: {error}") from None
    if layers is not None and "probes" in config:
        logger.warning("the probes of prior at %s are not read with a part of it", place)
    # Of a part, the sums of its files must do.
    if layers is None and prior.fingerprint != config.get("fingerprint"):
        raise PriorError(
            f"prior at {place} cannot be loaded: its content is not what was saved "
            f"({CONFIG_NAME} has another fingerprint)"
        )
    prior.source = place.source if isinstance(place, Snapshot) else None
    return prior


def _find(
    name_or_path: str | Path,
    revision: str | None,
    token: str | None,
    cache_dir: str | Path | None,
) -> Path | Snapshot:
    """Find out whether a prior is a folder or a repository, and which commit of it."""
    path_of(name_or_path, PriorError)
    cache_dir = None if cache_dir is None else path_of(cache_dir, PriorError)
    match = None if isinstance(name_or_path, Path) else _REPOSITORY.fullmatch(name_or_path)
    if match is None or Path(name_or_path).exists():
        if revision is not None:
            raise PriorError(
                f"revision '{revision}' is given for {name_or_path}, which is a folder"
            )
        return Path(name_or_path)
    repo_id, named = match["repo_id"], match["revision"]
    if named and revision:
        raise PriorError(f"{name_or_path} names a revision, and '{revision}' is given; leave one")
    try:
        return Snapshot.find(
            repo_id, named or revision, CONFIG_NAME, CONFIG_LIMIT, token=token, cache_dir=cache_dir
        )
    except HubError as error:
        raise PriorError(f"no prior at {name_or_path}: no such folder, and {error}") from error
