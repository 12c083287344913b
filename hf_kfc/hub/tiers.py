"""From a model to its prior, and from tier to tier back to the first, by what the cards say."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..cards import metadata_of
from ..errors import HfKfcError, HubError
from ..text import printable
from .snapshot import REPOSITORY, SHA, Snapshot, Source

__all__ = ["Tier", "find_prior", "pin", "split_revision", "walk_tiers"]

_CARD = "README.md"
_CARD_LIMIT = 2**20  # bytes
_CONFIG = "config.json"  # every model and every prior has it
_CONFIG_LIMIT = 64 * 2**20
_MOST_TIERS = 100
_NOTHING: tuple[object, ...] = ("", "~", "null", [])


class Tier(NamedTuple):
    """A model and the prior of the task it learnt last, each as ``"org/name@sha"``."""

    model: str
    prior: str


def find_prior(model: str, *, token: str | None = None) -> str:
    """Find the prior of a model's last task, which the model's card names.

    Args:
        model: Repository, ``"org/name"`` for its newest commit, or ``"org/name@revision"``.
        token: Access token; by default the one logged in with.

    Returns:
        The prior's repository and commit, ``"org/name@sha"``.

    Raises:
        HubError: The model's card cannot be read, or names no prior.

    Example:
        >>> name, sha = find_prior("org/tier1").split("@")  # doctest: +SKIP
        >>> prior = ConsolidationPrior.from_pretrained(name, revision=sha)  # doctest: +SKIP
    """
    return _prior_of(*_read_card(model, token))


def walk_tiers(model: str, *, token: str | None = None) -> Iterator[Tier]:
    """Follow the cards from the last tier to the first.

    A model's card names its prior and the model it went on from; the prior's card must name the
    model's repository in turn.

    Args:
        model: Repository of the last model, ``"org/name"`` or ``"org/name@revision"``.
        token: Access token; by default the one logged in with.

    Yields:
        Model and prior of each tier.

    Raises:
        HubError: A card cannot be read, lacks a link or leads back to where the walk has been, or
            there are more than 100 tiers.
    """
    seen: set[str] = set()
    next_model: str | None = model
    while next_model is not None:
        if len(seen) == _MOST_TIERS:
            raise HubError(
                f"the cards lead back from {model} over more than {_MOST_TIERS} tiers; use the "
                "priors by their own names"
            )
        pinned, data = _read_card(next_model, token)
        if pinned in seen:
            raise HubError(f"the tiers of {model} go round in a circle at {pinned}; mend its card")
        seen.add(pinned)
        prior = _prior_of(pinned, data)
        _check_back_link(prior, pinned, token)
        yield Tier(pinned, prior)
        next_model = _previous(pinned, data)


def pin(name: str, *, token: str | None = None) -> str:
    """Find out which commit a name stands for now.

    Args:
        name: ``"org/name"`` or ``"org/name@revision"`` of a model or a prior.
        token: Access token; by default the one logged in with.

    Returns:
        ``"org/name@sha"``. What has a full hash already, is a folder or cannot be the name of a
        repository stays as it is.

    Raises:
        HubError: There is no such repository or revision, or it is out of reach.
    """
    repo_id, revision = split_revision(name)
    is_pinned = revision is not None and SHA.fullmatch(revision)
    if is_pinned or Path(name).exists() or not REPOSITORY.fullmatch(repo_id):
        return name
    return str(Snapshot.find(repo_id, revision, _CONFIG, _CONFIG_LIMIT, token=token).source)


def split_revision(name: str) -> tuple[str, str | None]:
    """Split ``"org/name@revision"`` into its parts.

    Args:
        name: The name; that of a folder which is there stays as it is.
    """
    if Path(name).exists():
        return name, None
    name, _, revision = name.partition("@")
    return name, revision or None


def _read_card(name: str, token: str | None) -> tuple[str, dict[str, Any]]:
    """Read the metadata of a repository's card; return also the name with the commit."""
    repo_id, revision = split_revision(name)
    snapshot = Snapshot.find(repo_id, revision, _CARD, _CARD_LIMIT, token=token)
    text = snapshot.fetch(_CARD, _CARD_LIMIT).read_text(encoding="utf-8", errors="replace")
    try:
        return str(snapshot), metadata_of(text)
    except HfKfcError as error:
        raise HubError(f"the card of {snapshot} is damaged ({error}); mend it") from error


def _prior_of(pinned: str, data: dict[str, Any]) -> str:
    return _link(
        pinned,
        data.get("consolidation_prior"),
        "names no prior (consolidation_prior: org/name@sha); publish the model again, or use the "
        "prior by its own name",
    )


def _previous(pinned: str, data: dict[str, Any]) -> str | None:
    previous = data.get("previous_model", "")
    if previous in _NOTHING and data.get("consolidated_against", "") in _NOTHING:
        return None
    return _link(
        pinned,
        previous,
        "tells of earlier tiers but not which model it went on from (previous_model: "
        "org/name@sha); use the priors by their own names",
    )


def _link(pinned: str, link: object, otherwise: str) -> str:
    try:
        return str(Source.parse(str(link)))
    except HubError:
        raise HubError(f"the card of {pinned} {otherwise}") from None


def _check_back_link(prior: str, model: str, token: str | None) -> None:
    _, data = _read_card(prior, token)
    base, (repo_id, _) = data.get("base_model"), split_revision(model)
    if base != repo_id:
        raise HubError(
            f"the card of {model} names the prior {prior}, whose own names the model "
            f"{printable(base, 100)}; use the priors by their own names"
        )
