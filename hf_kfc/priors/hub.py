"""Publishing priors on the Hub: what is published of one, under which name and card."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import PriorError
from ..hub_errors import HUB_FAILURES, reason_of
from .card import prior_card
from .prior import ConsolidationPrior
from .privacy import MIN_EXAMPLES, without_rare_inputs
from .publication import CARD_NAME, Publication, PublishedPrior

__all__ = ["push_to_hub"]

logger = logging.getLogger(__name__)

_TAG = re.compile(r"(?!.*(\.\.|\.lock$|\.$))[A-Za-z0-9][\w.-]*", re.ASCII)
_PICTURE = re.compile(r"\w[\w-]*\.(png|svg)", re.ASCII)


def push_to_hub(
    prior: ConsolidationPrior,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    create_pr: bool = False,
    tag: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
    min_examples: int = MIN_EXAMPLES,
    max_shard_size: int | str = "500MB",
    anchor: str | None = None,
    card: str | None = None,
    pictures: Mapping[str, bytes] | None = None,
) -> PublishedPrior:
    """Publish a prior in a repository of its own, in one commit, and tag it.

    It takes the place of an older prior there, which stays what its tag and its hash name. If
    anything fails, or the process is killed, call it again: what is done is not done twice. Where
    somebody publishes at the same time, the commit is made anew on top of theirs. A pull request
    alone is made anew by every call.

    Args:
        prior: The prior; tokens seen in too few examples are left out of what is published.
        repo_id: The repository, ``"organisation/name"``; made if it is not there.
        private: Whether only its members may see the repository.
        revision: The branch, made if it is not there; by default the main one.
        create_pr: Whether to propose the commit only; it gets no tag.
        tag: By default the task and the first digits of the published prior's fingerprint.
        commit_message: By default it names the task.
        token: Access token; by default the one logged in with.
        min_examples: In how many examples a token must have been seen to be kept; see
            :func:`~hf_kfc.priors.privacy.without_rare_inputs`.
        max_shard_size: Size above which the tensors are split into several files.
        anchor: ``"org/model@<full hash>"``: see :meth:`ConsolidationPrior.save_pretrained`.
        card: Text of the README; by default :func:`~hf_kfc.priors.card.prior_card`.
        pictures: What the card shows: PNG or SVG files by name.

    Returns:
        The commit and its tag.

    Raises:
        PriorError: The repository holds something else or is not as private as asked, the tag
            is another prior's, the anchor is not the model's, or the Hub refused or is out of
            reach; nothing is half published then.

    Example:
        >>> prior.push_to_hub("me/tier1-kfc")  # doctest: +SKIP
        >>> ConsolidationPrior.from_pretrained("me/tier1-kfc")  # doctest: +SKIP
    """
    if create_pr and tag:
        raise PriorError(f"tag '{tag}' is given for a pull request, which gets none; leave it out")
    public = without_rare_inputs(prior, min_examples)
    _tell_what_is_left_out(public)
    with TemporaryDirectory(prefix="hf_kfc-") as base:
        folder = Path(base) / "prior"
        public.save_pretrained(folder, max_shard_size=max_shard_size, anchor=anchor, token=token)
        text = prior_card(public, repo_id, base_model=anchor) if card is None else card
        _add_card(folder, text, pictures or {})
        publication = Publication(
            repo_id,
            folder,
            tag=None if create_pr else _checked(tag or _tag_of(public)),
            message=commit_message or f"Publish the prior of {public.task}",
            revision=revision,
            token=token,
        )
        try:
            published = publication.publish(private)
        except PriorError:
            raise
        except HUB_FAILURES as error:
            raise PriorError(
                f"{repo_id}: the prior of '{public.task}' is not published, or without an answer "
                f"({reason_of(error)}); try again, what was done is not done twice"
            ) from error
    logger.info("the prior of '%s' is published as %s", public.task, published)
    return published


def _tell_what_is_left_out(public: ConsolidationPrior) -> None:
    for name, dropped in public.provenance.dropped_inputs.items():
        if dropped:
            logger.warning(
                "published without %d tokens of %s that fewer than %s examples have",
                dropped,
                name,
                public.provenance.min_examples,
            )


def _add_card(folder: Path, text: str, pictures: Mapping[str, bytes]) -> None:
    (folder / CARD_NAME).write_text(text, encoding="utf-8")
    for name, content in pictures.items():
        if not _PICTURE.fullmatch(name):
            raise PriorError(f"{name!r} is no name of a picture; give one like 'loss.png'")
        (folder / name).write_bytes(content)


def _tag_of(public: ConsolidationPrior) -> str:
    task = re.sub(r"[^A-Za-z0-9]+", "-", public.task).strip("-") or "prior"
    return f"{task[:64]}-{public.fingerprint[:12]}"


def _checked(tag: str) -> str:
    if not _TAG.fullmatch(tag):
        raise PriorError(f"{tag!r} cannot be a tag; give letters, digits, '.', '_' and '-'")
    return tag
