"""Pushing priors to the Hub: what is pushed of one, under which name, tag and card."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperation, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

from ..errors import HubError, PriorError
from ..files import scratch_directory
from ..hub import Committed, Snapshot, Source, commit, hub_errors_as, open_repository
from ..hub.commit import RepositoryInfo, siblings
from ..text import printable
from .base import BasePrior
from .card import prior_card
from .files import CARD_NAME, CONFIG_LIMIT, CONFIG_NAME, checksum_of, holds_tensors, read_config
from .privacy import (
    MIN_EXAMPLES,
    made_of_rare_tokens,
    refuse_few_examples,
    without_rare_inputs,
)
from .store import save_pretrained

__all__ = ["PushedPrior", "check_repository", "push_to_hub"]

logger = logging.getLogger(__name__)

_TAKEN = 409  # the status by which the Hub refuses a tag that is there already
_TAG = re.compile(r"(?!.*(\.\.|\.lock$|\.$))[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class PushedPrior:
    """Where a prior was pushed.

    Args:
        repo_id: The repository.
        commit: Full hash of the commit that holds it.
        tag: The tag of that commit; None of a pull request.
        url: Its page.
        pr_revision: The revision of the pull request, if it is one: ``"refs/pr/<number>"``.
    """

    repo_id: str
    commit: str
    tag: str | None
    url: str
    pr_revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.commit}"


def push_to_hub(
    prior: BasePrior,
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
) -> PushedPrior:
    """Push the prior to a repository of its own, in one commit, without rare tokens, and tag it.

    It takes the place of an older prior there, which stays what its tag and its hash name. If
    anything fails, or the process is killed, call it again: what is done is not done twice. Where
    somebody commits at the same time, the commit is made anew on top of theirs. A pull request
    alone is made anew by every call.

    Args:
        repo_id: The repository, ``"organisation/name"``; made if it is not there.
        private: Whether only its members may see the repository.
        revision: The branch, made if it is not there; by default the main one.
        create_pr: Whether to propose the commit only; it gets no tag.
        tag: By default the task and the first digits of the pushed prior's fingerprint.
        commit_message: By default it names the task.
        token: Access token; by default the one logged in with.
        min_examples: In how many examples a token must have been seen to be kept: its row of an
            embedding, and its anchor.
        max_shard_size: Size above which the tensors are split into several files.
        anchor: ``"org/model@<full hash>"``, a model on the Hub whose parameters are the anchor: it
            is pointed at, and not stored again.
        card: Text of the README; by default what the prior tells of itself.

    Returns:
        The commit and its tag.

    Raises:
        PriorError: The tag cannot be one, or the prior does not tell which tokens are rare, or was
            made of them by fewer examples than a layer has inputs.
        HubError: The repository holds something else or is not as private as asked, the tag is
            another prior's, the anchor is not the model's, or the Hub refused or is out of reach;
            nothing is half pushed then.

    Example:
        >>> prior.push_to_hub("me/tier1-kfc")  # doctest: +SKIP
        >>> ConsolidationPrior.from_pretrained("me/tier1-kfc")  # doctest: +SKIP
    """
    if create_pr and tag:
        raise PriorError(f"tag '{tag}' is given for a pull request, which gets none; leave it out")
    public = without_rare_inputs(prior, min_examples)
    refuse_few_examples(public)
    with scratch_directory() as base:
        folder = base / "prior"
        text = prior_card(public, repo_id, base_model=anchor) if card is None else card
        save_pretrained(
            public, folder, max_shard_size=max_shard_size, anchor=anchor, card=text, token=token
        )
        name = None if create_pr else _checked(tag or _tag_of(public))
        message = commit_message or f"Publish the prior of {public.task}"
        push = _Push(repo_id, folder, revision, message, token)
        with hub_errors_as(
            f"{repo_id}: the prior of '{public.task}' is not pushed, or without an answer "
            "({reason}); try again, what was done is not done twice"
        ):
            open_repository(push.api, repo_id, private=private)
            _tell_what_is_left_out(public)  # what can be refused has been, nothing is sent yet
            pushed = push.propose() if name is None else push.put(name)
    logger.info("the prior of '%s' is pushed as %s", printable(public.task), pushed)
    return pushed


def check_repository(repo_id: str) -> None:
    """Make sure that a prior can be pushed to a repository, before hours of work that end in it.

    Args:
        repo_id: The repository; made, for its members only, if it is not there.

    Raises:
        HubError: The Hub takes no token or is out of reach, or the repository is somebody else's,
            is public or holds something else.
    """
    repository = _Repository(repo_id, None)
    with hub_errors_as(
        f"{repo_id}: a prior cannot be pushed there ({{reason}}); log in with 'hf auth login' or "
        "set HF_TOKEN, and name a repository that you may write to"
    ):
        open_repository(repository.api, repo_id, private=True)
        repository.refuse_foreign(repository.info(None))


def _tell_what_is_left_out(public: BasePrior) -> None:
    origin = public.provenance
    if public.probes is not None:
        logger.warning(
            "will be pushed with %d probes (%s), whose inputs whoever has the prior can read",
            len(public.probes),
            printable(public.probes.provenance.name),
        )
    dropped = {name: number for name, number in origin.dropped_inputs.items() if number}
    for name, number in dropped.items():
        logger.warning(
            "will be pushed without %d tokens of %s that fewer than %s examples have",
            number,
            printable(name),
            origin.min_examples,
        )
    if (widest := made_of_rare_tokens(public)) is not None:
        logger.warning(
            "tokens that were left out can be found: what the A of %s spans, %d inputs from %d "
            "examples, was made of them; estimate it with min_token_examples=%s, or do not push it",
            printable(widest.name),
            widest.shape[1],
            public.curvature.num_examples,
            origin.min_examples,
        )


def _tag_of(public: BasePrior) -> str:
    task = re.sub(r"[^A-Za-z0-9]+", "-", public.task).strip("-") or "prior"
    return f"{task[:64]}-{public.fingerprint[:12]}"


def _checked(tag: str) -> str:
    if not (isinstance(tag, str) and _TAG.fullmatch(tag)):
        raise PriorError(f"{tag!r} cannot be a tag; give letters, digits, '.', '_' and '-'")
    return tag


class _Repository:
    """What a repository holds."""

    def __init__(self, repo_id: str, token: str | None) -> None:
        self.api = HfApi(token=token, library_name="hf_kfc")
        self.repo_id = repo_id
        self.token = token

    def info(self, revision: str | None) -> RepositoryInfo:
        return self.api.model_info(self.repo_id, revision=revision, files_metadata=True)

    def at(self, info: RepositoryInfo) -> Snapshot:
        return Snapshot(Source(self.repo_id, str(info.sha)), self.token)

    def refuse_foreign(self, info: RepositoryInfo) -> None:
        """Refuse to put a prior over a model, or anything else that has a ``config.json``."""
        others = sorted(siblings(info).keys() - {".gitattributes", CARD_NAME})
        if others and self.config_at(info) is None:
            raise HubError(
                f"{self.repo_id} holds {', '.join(others[:5])} and no prior; choose another "
                "repository"
            )

    def config_at(self, info: RepositoryInfo) -> dict[str, Any] | None:
        if CONFIG_NAME not in siblings(info):
            return None
        snapshot = self.at(info)
        snapshot.fetch(CONFIG_NAME, CONFIG_LIMIT)  # what fails from here on is no prior
        try:
            return read_config(snapshot)
        except PriorError:
            return None


class _Push(_Repository):
    """A prior's way into a repository; every step finds out by itself whether it is done."""

    def __init__(
        self, repo_id: str, folder: Path, revision: str | None, message: str, token: str | None
    ) -> None:
        super().__init__(repo_id, token)
        self.revision = revision
        self.message = message
        self.files = {path.name: path for path in sorted(folder.iterdir())}
        self.config = read_config(folder)

    def put(self, tag: str) -> PushedPrior:
        """Commit the prior and tag the commit, unless a commit of the tag holds it."""
        tagged, head = self._tagged(tag), self._head()
        page = f"{self.api.endpoint}/{self.repo_id}/tree/{tag}"
        is_whole = tagged is not None and self._state(tagged) == "whole"
        if tagged is not None and is_whole and self._state(head) != "damaged":
            logger.warning("%s holds the prior already: nothing is pushed", page)
            return PushedPrior(self.repo_id, str(tagged.sha), tag, page)
        sha = self._commit(create_pr=False).sha
        if tagged is not None and not is_whole:
            logger.warning("%s held a damaged copy: its tag is moved to the whole one", page)
            self.api.delete_tag(self.repo_id, tag=tag)
        return PushedPrior(self.repo_id, sha if is_whole else self._put_tag(tag, sha), tag, page)

    def propose(self) -> PushedPrior:
        """Open a pull request, unless the branch holds the prior."""
        self._head()
        sha, made = self._commit(create_pr=True)
        if made is None:
            page = f"{self.api.endpoint}/{self.repo_id}/tree/{sha}"
            logger.warning("%s holds the prior already: nothing is proposed", page)
            return PushedPrior(self.repo_id, sha, None, page)
        logger.warning("%s is proposed, and has no tag", made.pr_url)
        return PushedPrior(self.repo_id, sha, None, str(made.pr_url), made.pr_revision)

    def _commit(self, *, create_pr: bool) -> Committed:
        return commit(
            self.api,
            self.repo_id,
            self._changes,
            message=self.message,
            revision=self.revision,
            create_pr=create_pr,
        )

    def _changes(self, head: RepositoryInfo) -> list[CommitOperation]:
        """Add all files, and delete what an older prior has besides; nothing if it is there."""
        if self._state(head) == "whole":
            return []
        self.refuse_foreign(head)
        stale = [name for name in siblings(head) if holds_tensors(name) and name not in self.files]
        return [
            *(CommitOperationDelete(name) for name in stale),
            *(CommitOperationAdd(name, path) for name, path in self.files.items()),
        ]

    def _head(self) -> RepositoryInfo:
        """Return the last commit of the branch, and make the branch if it is not there."""
        try:
            return self.info(self.revision)
        except RevisionNotFoundError:
            if self.revision is None:
                raise
        self.refuse_foreign(self.info(None))
        self.api.create_branch(self.repo_id, branch=self.revision, exist_ok=True)
        return self.info(self.revision)

    def _put_tag(self, tag: str, sha: str) -> str:
        """Tag a commit; return the commit that has the tag, which may be somebody else's."""
        try:
            self.api.create_tag(self.repo_id, tag=tag, revision=sha)
        except HfHubHTTPError as error:
            if error.response.status_code != _TAKEN:
                raise
            tagged = self._tagged(tag)
            return sha if tagged is None else str(tagged.sha)
        return sha

    def _tagged(self, tag: str) -> RepositoryInfo | None:
        """Return the commit that has the tag already; refuse if it holds anything else."""
        tags = {ref.name: ref.target_commit for ref in self.api.list_repo_refs(self.repo_id).tags}
        if tag not in tags:
            return None
        info = self.info(tags[tag])
        if self._state(info) is None:
            raise HubError(
                f"tag '{tag}' of {self.repo_id} is at {info.sha}, which is not this prior; give "
                "another tag"
            )
        return info

    def _state(self, info: RepositoryInfo) -> str | None:
        """Whether a commit holds this prior "whole", every file by its sum, or "damaged"."""
        config = self.config_at(info)
        if config is None or _identity(config) != _identity(self.config):
            return None
        files = config["files"].items()
        return "whole" if all(self._has(info, *file) for file in files) else "damaged"

    def _has(self, info: RepositoryInfo, name: str, expected: Mapping[str, Any]) -> bool:
        there = siblings(info).get(name)
        if there is None or there.size != expected.get("bytes"):
            return False
        if there.lfs is not None:
            return there.lfs.sha256 == expected.get("sha256")
        # Only a small file is not stored by that sum.
        path = self.at(info).fetch(name, there.size or 0)
        return bool(checksum_of(path)["sha256"] == expected.get("sha256"))


def _identity(config: Mapping[str, Any]) -> list[Any]:
    """Return what makes it this prior: not how it is cut into files, nor by which versions."""
    origin = config.get("provenance")
    if isinstance(origin, dict):
        origin = {name: value for name, value in origin.items() if name != "library_versions"}
    names = ("fingerprint", "num_curvature_examples", "ignored")
    return [origin, *(config.get(name) for name in names)]
