"""A repository on the Hub at one commit, whose files are downloaded when they are needed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from huggingface_hub import HfApi
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from ..errors import HubError
from .failures import HUB_FAILURES, answers_are_read, reason_of

__all__ = ["Snapshot", "Source"]

SHA = re.compile(r"[0-9a-f]{40}", re.ASCII)
REPOSITORY = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class Source:
    """A commit of a repository on the Hub: where something was read from.

    Args:
        repo_id: ``"organisation/name"``.
        sha: The full hash of the commit.
    """

    repo_id: str
    sha: str

    def __post_init__(self) -> None:
        if not (isinstance(self.repo_id, str) and REPOSITORY.fullmatch(self.repo_id)):
            raise HubError(f"{self.repo_id!r:.80} is no repository; give 'organisation/name'")
        if not (isinstance(self.sha, str) and SHA.fullmatch(self.sha)):
            raise HubError(
                f"{self.repo_id} is not pinned by {self.sha!r:.80}; give a commit's full hash"
            )

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.sha}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Undo ``str(source)``.

        Raises:
            HubError: The text is not ``"organisation/name@<full hash>"``.
        """
        repo_id, _, sha = str(text).partition("@")
        return cls(repo_id, sha)


class Snapshot:
    """The files of a repository at one commit.

    Args:
        source: The commit.
        token: Access token; by default the one logged in with.
        cache_dir: Where downloads are kept; by default the cache of the Hub's client.
    """

    def __init__(
        self, source: Source, token: str | None = None, cache_dir: str | Path | None = None
    ) -> None:
        self.source = source
        self.token = token
        self.cache_dir = cache_dir

    def __str__(self) -> str:
        return str(self.source)

    @classmethod
    def find(
        cls,
        repo_id: str,
        revision: str | None,
        name: str,
        limit: int,
        *,
        token: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> Self:
        """Resolve a branch, a tag or a hash by one of the files.

        Args:
            repo_id: ``"organisation/name"``.
            revision: Branch, tag or hash; by default the main branch.
            name: A file that must be there.
            limit: The most bytes that it may have.
            token: Access token; by default the one logged in with.
            cache_dir: Where downloads are kept; by default the cache of the Hub's client.

        Raises:
            HubError: It is not there, too large, or cannot be fetched.
        """
        path = _download(repo_id, name, revision or "main", limit, token, cache_dir)
        return cls(Source(repo_id, path.parent.name), token, cache_dir)  # snapshots/<sha>/name

    def fetch(self, name: str, limit: int) -> Path:
        """Return where a file is on this machine; what is cached is not asked for again.

        Args:
            name: Its name; whoever calls has made sure that it is one to be expected.
            limit: The most bytes that it may have.

        Raises:
            HubError: It is not there, too large, or cannot be fetched.
        """
        source = self.source
        return _download(source.repo_id, name, source.sha, limit, self.token, self.cache_dir)


def _download(
    repo_id: str,
    name: str,
    revision: str,
    limit: int,
    token: str | None,
    cache_dir: str | Path | None,
) -> Path:
    where = f"{repo_id}@{revision}"
    api = HfApi(token=token, library_name="hf_kfc")
    try:
        # Its size is asked for first: what is too large is not even downloaded.
        with answers_are_read():
            found = api.hf_hub_download(
                repo_id, name, revision=revision, cache_dir=cache_dir, dry_run=True
            )
            if found.file_size is not None and found.file_size > limit:
                raise HubError(
                    f"{name} of {where} has {found.file_size} bytes, expected at most {limit}"
                )
            return Path(api.hf_hub_download(repo_id, name, revision=revision, cache_dir=cache_dir))
    except HUB_FAILURES as error:
        missing = isinstance(error, EntryNotFoundError)
        if missing and not isinstance(error, LocalEntryNotFoundError):
            raise HubError(f"{where} has no {name}") from error
        raise HubError(f"{name} of {where} cannot be fetched: {reason_of(error)}") from error
