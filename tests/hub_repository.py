"""Repositories as the Hub keeps them: commits that never change, branches and tags that move."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from hub_http import HttpError

ATTRIBUTES = "".join(
    f"{pattern} filter=lfs diff=lfs merge=lfs -text\n"
    for pattern in ("*.bin", "*.npy", "*.parquet", "*.png", "*.safetensors", "*.zip")
)
"""What a new repository keeps as large files, in its `.gitattributes`."""

_LARGE = 10 * 2**20  # bytes from which a file is a large one whatever its name


@dataclass(frozen=True)
class Blob:
    """A file's content; one kept as a large file is known by its sha256."""

    content: bytes
    large: bool = False

    @property
    def git_id(self) -> str:
        """What git calls it; of a large file, its pointer."""
        content = self.content
        if self.large:
            pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"
            content = pointer.format(self.sha256, len(content)).encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.git_id

    def describe(self) -> dict[str, Any]:
        """What the API tells of a file, beside its path."""
        description: dict[str, Any] = {"size": len(self.content), "oid": self.git_id}
        if self.large:
            description["lfs"] = {
                "oid": self.sha256,
                "sha256": self.sha256,
                "size": len(self.content),
                "pointerSize": 134,
            }
        return description


@dataclass(frozen=True)
class Commit:
    """A state of all files, known by a hash of them and of its history."""

    parent: str
    files: Mapping[str, Blob]
    title: str
    message: str
    date: str = field(default_factory=lambda: datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"))

    @property
    def sha(self) -> str:
        ids = sorted((path, blob.git_id) for path, blob in self.files.items())
        state = [self.parent, ids, self.title, self.message, self.date]
        return hashlib.sha1(json.dumps(state).encode()).hexdigest()

    def describe(self) -> dict[str, str]:
        """What the API tells of a commit."""
        return {"id": self.sha, "title": self.title, "message": self.message, "date": self.date}

    def entries(self, folder: str = "", recursive: bool = True) -> list[dict[str, Any]]:
        """List the files and folders of a folder (``""`` is the root)."""
        prefix = f"{folder}/" if folder else ""
        inside = {path: blob for path, blob in self.files.items() if path.startswith(prefix)}
        if folder and not inside:
            raise HttpError(404, f"{folder} does not exist", "EntryNotFound")
        entries: dict[str, dict[str, Any]] = {}
        for path, blob in sorted(inside.items()):
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts)):
                above = prefix + "/".join(parts[:depth])
                id_ = hashlib.sha1(above.encode()).hexdigest()
                entries[above] = {"type": "directory", "path": above, "oid": id_, "size": 0}
            entries[path] = {"type": "file", "path": path} | blob.describe()
        return [
            entry | {"lastCommit": self.describe()}
            for path, entry in entries.items()
            if recursive or "/" not in path.removeprefix(prefix)
        ]

    def keeps_large(self, path: str, size: int) -> bool:
        """Tell whether a new file is to be kept as a large one."""
        attributes = self.files.get(".gitattributes", Blob(b"")).content.decode()
        patterns = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line]
        return size >= _LARGE or any(fnmatch(Path(path).name, pattern) for pattern in patterns)


@dataclass
class Repository:
    """A repository.

    Args:
        type: ``"model"`` or ``"dataset"``.
        id: ``"namespace/name"``.
        private: Whether it takes a token to see it.
        commits: By their hash.
        refs: Hashes by ``"refs/heads/..."``, ``"refs/tags/..."`` and ``"refs/pr/..."``.
        uploads: Large files that were uploaded, committed or not, by their sha256.
    """

    type: str
    id: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        first = {".gitattributes": Blob(ATTRIBUTES.encode())}
        self._put("refs/heads/main", Commit("", first, "initial commit", ""))

    def resolve(self, revision: str) -> Commit:
        """Find a commit by branch, tag, full ref or hash."""
        for ref in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}"):
            if ref in self.refs:
                return self.commits[self.refs[ref]]
        for sha, commit in self.commits.items():
            if len(revision) >= 7 and sha.startswith(revision):
                return commit
        raise HttpError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def commit(
        self,
        revision: str,
        header: Mapping[str, Any],
        changes: Iterable[Any],
        propose: bool = False,
    ) -> Commit:
        """Put a commit on a branch or propose it, all of it or nothing."""
        ref = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
        if ref not in self.refs:
            raise HttpError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        head = self.commits[self.refs[ref]]
        if not head.sha.startswith(header.get("parentCommit") or ""):
            raise HttpError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for change in changes:
            self._apply(change["key"], change["value"], files)
        commit = Commit(head.sha, files, header["summary"], header.get("description") or "")
        if propose:
            ref = f"refs/pr/{1 + sum(ref.startswith('refs/pr/') for ref in self.refs)}"
        self._put(ref, commit)
        return commit

    def add_ref(self, ref: str, target: str) -> None:
        """Create a branch or a tag."""
        if ref in self.refs:
            raise HttpError(409, f"Reference {ref} already exists")
        self.refs[ref] = self.resolve(target).sha

    def remove_ref(self, ref: str) -> None:
        """Delete a branch or a tag."""
        if self.refs.pop(ref, None) is None:
            raise HttpError(404, f"Reference {ref} does not exist", "RevisionNotFound")

    def _apply(self, key: str, value: Mapping[str, Any], files: dict[str, Blob]) -> None:
        path = value["path"]
        if key == "file":
            files[path] = Blob(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if value["oid"] not in self.uploads:
                raise HttpError(400, f"{path}: its content was not uploaded")
            files[path] = Blob(self.uploads[value["oid"]], large=True)
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise HttpError(
                    404, f"A file with this name doesn't exist: {path}", "EntryNotFound"
                )
        elif key == "deletedFolder":
            for inside in [name for name in files if name.startswith(path.rstrip("/") + "/")]:
                del files[inside]
        else:
            raise HttpError(400, f"unknown operation {key}")

    def _put(self, ref: str, commit: Commit) -> None:
        self.commits[commit.sha] = commit
        self.refs[ref] = commit.sha
