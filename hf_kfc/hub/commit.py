"""Commits on the Hub: whole or not at all, and on top of what others have committed meanwhile."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import NamedTuple

from huggingface_hub import CommitInfo, CommitOperation, DatasetInfo, HfApi, ModelInfo
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoSibling

from ..errors import HubError
from .failures import AnswerError, UploadError

__all__ = ["Committed", "RepositoryInfo", "commit", "holds", "open_repository", "siblings"]

logger = logging.getLogger(__name__)

_ATTEMPTS = 5
_STALE = 412  # the status by which the Hub refuses a commit whose parent is not the last one

RepositoryInfo = ModelInfo | DatasetInfo
"""A repository at one commit: its hash, its files with sizes and sums."""


class Committed(NamedTuple):
    """Where the changes are.

    Args:
        sha: Full hash of the commit that has them.
        made: The commit, if it was made now; None if they were there already.
    """

    sha: str
    made: CommitInfo | None


def open_repository(api: HfApi, repo_id: str, *, private: bool, repo_type: str = "model") -> None:
    """Make a repository, unless it is there.

    Args:
        api: The client.
        repo_id: ``"organisation/name"``.
        private: Whether only its members may see it.
        repo_type: ``"model"`` or ``"dataset"``.

    Raises:
        HubError: It is there and not as private as asked.
    """
    api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
    if api.repo_info(repo_id, repo_type=repo_type).private != private:
        there = "public" if private else "private"
        raise HubError(f"{repo_id} is there and {there}; pass private={not private}")


def commit(
    api: HfApi,
    repo_id: str,
    changes: Callable[[RepositoryInfo], Sequence[CommitOperation]],
    *,
    message: str,
    repo_type: str = "model",
    revision: str | None = None,
    create_pr: bool = False,
) -> Committed:
    """Commit changes on top of what a repository holds, in one commit.

    Where somebody commits at the same time, the changes are made anew on top of theirs. Called
    again after a failure or a kill, it does what is not done yet, as ``changes`` finds out.

    Args:
        api: The client.
        repo_id: ``"organisation/name"``.
        changes: Is shown the last commit, with the sums of its files, and says what to change;
            nothing if the repository is as it should be.
        message: Of the commit.
        repo_type: ``"model"`` or ``"dataset"``.
        revision: The branch; by default the main one.
        create_pr: Whether to propose the commit only.

    Raises:
        HfHubHTTPError: And others of :data:`~hf_kfc.hub.HUB_FAILURES`; nothing is changed then, or
            all if the answer alone was lost. What ``changes`` raises stays as it is.
    """
    for attempt in count(1):
        head = api.repo_info(repo_id, repo_type=repo_type, revision=revision, files_metadata=True)
        assert isinstance(head, RepositoryInfo)
        if head.sha is None:  # only listings of repositories leave it out
            raise AnswerError("the answer names no commit")
        operations = changes(head)
        if not operations:
            return Committed(head.sha, None)
        try:
            made = api.create_commit(
                repo_id,
                operations,
                commit_message=message,
                repo_type=repo_type,
                revision=revision,
                create_pr=create_pr,
                parent_commit=head.sha,
            )
        except HfHubHTTPError as error:
            if error.response.status_code != _STALE or attempt == _ATTEMPTS:
                raise
            logger.warning("%s changed meanwhile; pushing on top of it", repo_id)
        except (RuntimeError, ValueError) as error:
            # The client's: of an upload that failed, of a card that the Hub does not take, of an
            # answer that it does not understand.
            raise UploadError(_chain(error)) from error
        else:
            return Committed(made.oid, made)
    raise AssertionError("unreachable")


def _chain(error: BaseException) -> str:
    """Join the words of an error with those of what caused it."""
    said = [str(error) or type(error).__name__]
    while (cause := error.__cause__) is not None:
        said.append(str(cause) or type(cause).__name__)
        error = cause
    return ": ".join(dict.fromkeys(said))


def siblings(info: RepositoryInfo) -> dict[str, RepoSibling]:
    """Return the files of a repository by name, with their sizes and sums."""
    return {file.rfilename: file for file in info.siblings or []}


def holds(there: RepoSibling | None, content: Path | bytes) -> bool:
    """Whether a repository has a file as it is here, by its sum.

    Args:
        there: The file in the repository; None if it has none of the name.
        content: The file here.
    """
    if there is None:
        return False
    with io.BytesIO(content) if isinstance(content, bytes) else content.open("rb") as file:
        if there.lfs is not None:
            return hashlib.file_digest(file, "sha256").hexdigest() == there.lfs.sha256
        blob = hashlib.sha1(b"blob %d\0" % file.seek(0, io.SEEK_END))  # as git names it
        file.seek(0)
        return hashlib.file_digest(file, lambda: blob).hexdigest() == there.blob_id
