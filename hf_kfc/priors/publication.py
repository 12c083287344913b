"""A prior's way into a repository: it is there whole or not at all, and none is ever lost."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitInfo,
    CommitOperation,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelInfo,
)
from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

from ..errors import PriorError
from .files import CONFIG_LIMIT, CONFIG_NAME, holds_tensors, read_config
from .snapshot import PriorSource, Snapshot

__all__ = ["CARD_NAME", "Publication", "PublishedPrior"]

logger = logging.getLogger(__name__)

CARD_NAME = "README.md"
_ATTEMPTS = 3
_STALE, _TAKEN = 412, 409  # statuses: the parent is not the last commit, the tag is there already


@dataclass(frozen=True)
class PublishedPrior:
    """Where a prior was published.

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


class Publication:
    """One prior's way into a repository; every step finds out by itself whether it is done.

    Args:
        repo_id: The repository.
        folder: The files to publish.
        tag: The tag to make; None proposes the commit only.
        message: Of the commit.
        revision: The branch.
        token: Access token.
    """

    def __init__(
        self,
        repo_id: str,
        folder: Path,
        *,
        tag: str | None,
        message: str,
        revision: str | None,
        token: str | None,
    ) -> None:
        self.api = HfApi(token=token, library_name="hf_kfc")
        self.repo_id = repo_id
        self.folder = folder
        self.tag = tag
        self.message = message
        self.revision = revision
        self.token = token
        self.config = read_config(folder)

    def publish(self, private: bool) -> PublishedPrior:
        """Do what is not done yet."""
        self.api.create_repo(self.repo_id, private=private, exist_ok=True)
        if self.api.model_info(self.repo_id).private != private:
            there = "public" if private else "private"
            raise PriorError(f"{self.repo_id} is there and {there}; pass private={not private}")
        if self.tag is None:
            return self._propose()
        page = f"{self.api.endpoint}/{self.repo_id}/tree/{self.tag}"
        commit = self._tagged()
        if commit is None:
            commit = self._put_tag(self._commit()[0])
        else:
            logger.warning("%s holds the prior already: nothing is published", page)
        return PublishedPrior(self.repo_id, commit, self.tag, page)

    def _propose(self) -> PublishedPrior:
        commit, made = self._commit()
        if made is None:
            page = f"{self.api.endpoint}/{self.repo_id}/tree/{commit}"
            logger.warning("%s holds the prior already: nothing is proposed", page)
            return PublishedPrior(self.repo_id, commit, None, page)
        logger.warning("%s is proposed, and has no tag", made.pr_url)
        return PublishedPrior(self.repo_id, commit, None, str(made.pr_url), made.pr_revision)

    def _commit(self) -> tuple[str, CommitInfo | None]:
        """Put the prior on top of the branch, unless it is there; begin again if others did."""
        attempt = 0
        while True:
            attempt += 1
            head = self._head()
            assert head.sha is not None  # only listings of repositories leave it out
            if self._is_at(head):
                return head.sha, None
            self._refuse_foreign(head)
            try:
                made = self.api.create_commit(
                    self.repo_id,
                    list(self._changes(head)),
                    commit_message=self.message,
                    revision=self.revision,
                    create_pr=self.tag is None,
                    parent_commit=head.sha,
                )
            except HfHubHTTPError as error:
                if error.response.status_code != _STALE or attempt == _ATTEMPTS:
                    raise
                logger.warning("%s changed meanwhile; publishing on top of it", self.repo_id)
            else:
                return made.oid, made

    def _head(self) -> ModelInfo:
        """Return the last commit of the branch, and make the branch if it is not there."""
        try:
            return self._info(self.revision)
        except RevisionNotFoundError:
            if self.revision is None:
                raise
        self._refuse_foreign(self._info(None))
        self.api.create_branch(self.repo_id, branch=self.revision, exist_ok=True)
        return self._info(self.revision)

    def _info(self, revision: str | None) -> ModelInfo:
        return self.api.model_info(self.repo_id, revision=revision, files_metadata=True)

    def _changes(self, head: ModelInfo) -> Iterator[CommitOperation]:
        """Add all files; delete what an older prior has besides."""
        ours = {path.name: path for path in sorted(self.folder.iterdir())}
        for name in _sizes(head):
            if holds_tensors(name) and name not in ours:
                yield CommitOperationDelete(name)
        for name, path in ours.items():
            yield CommitOperationAdd(name, path)

    def _put_tag(self, commit: str) -> str:
        assert self.tag is not None
        try:
            self.api.create_tag(self.repo_id, tag=self.tag, revision=commit)
        except HfHubHTTPError as error:
            if error.response.status_code != _TAKEN:
                raise
            return self._tagged() or commit  # somebody else published the same prior
        return commit

    def _tagged(self) -> str | None:
        """Return the commit that has the tag already; refuse if it holds anything else."""
        tags = {ref.name: ref.target_commit for ref in self.api.list_repo_refs(self.repo_id).tags}
        commit = tags.get(self.tag or "")
        if commit is not None and not self._is_at(self._info(commit)):
            raise PriorError(
                f"tag '{self.tag}' of {self.repo_id} is at {commit}, which is not this prior; give "
                "another tag"
            )
        return commit

    def _is_at(self, info: ModelInfo) -> bool:
        """Whether a commit holds this prior, and all of it."""
        config, sizes = self._config_at(info), _sizes(info)
        return (
            config is not None
            and _identity(config) == _identity(self.config)
            and all(sizes.get(name) == file.get("bytes") for name, file in config["files"].items())
        )

    def _refuse_foreign(self, info: ModelInfo) -> None:
        """Refuse to put a prior over a model, or anything else that has a ``config.json``."""
        others = sorted(_sizes(info).keys() - {".gitattributes", CARD_NAME})
        if others and self._config_at(info) is None:
            raise PriorError(
                f"{self.repo_id} holds {', '.join(others[:5])} and no prior; choose another "
                "repository"
            )

    def _config_at(self, info: ModelInfo) -> dict[str, Any] | None:
        if CONFIG_NAME not in _sizes(info):
            return None
        snapshot = Snapshot(PriorSource(self.repo_id, str(info.sha)), self.token)
        snapshot.fetch(CONFIG_NAME, CONFIG_LIMIT)  # what fails from here on is no prior
        try:
            return read_config(snapshot)
        except PriorError:
            return None


def _sizes(info: ModelInfo) -> dict[str, int | None]:
    return {file.rfilename: file.size for file in info.siblings or []}


def _identity(config: Mapping[str, Any]) -> list[Any]:
    """Return what makes it this prior: not how it is cut into files, nor by which versions."""
    origin = config.get("provenance")
    if isinstance(origin, dict):
        origin = {name: value for name, value in origin.items() if name != "library_versions"}
    names = ("fingerprint", "num_curvature_examples", "ignored")
    return [origin, *(config.get(name) for name in names)]
