"""A small Hub on this machine, for the real client: what it stores, answers, and how it fails.

    with HubServer() as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)

In a test, take the fixture ``hub``. Code that cannot be given an endpoint runs in a process of its
own, with ``hub.environment(home)``. Large files go by the plain LFS protocol, never by Xet.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

from hub_http import Answer, Call, HttpError, HttpServer
from hub_repository import Repository

TOKEN, READ_TOKEN = "dummy", "dummy-read"
_REPOSITORY = r"(?P<type>model|dataset)s/(?P<id>[^/]+/[^/]+)"
_REFS = {"branches": "refs/heads/", "tags": "refs/tags/", "pullRequests": "refs/pr/"}
_PAGE = r"/(?P<prefix>datasets/)?(?P<id>[^/]+/[^/]+)"
_ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Answer]]] = []


def _route(methods: str, pattern: str) -> Callable[[Any], Any]:
    """Register what answers a path; it takes the path's named parts as arguments."""

    def register(function: Any) -> Any:
        _ROUTES.extend((method, re.compile(pattern), function) for method in methods.split())
        return function

    return register


class HubServer(HttpServer):
    """A Hub that forgets all when it closes.

    Attributes:
        token: A token that may write; ``READ_TOKEN`` may read private repositories.
        repositories: By type and id.
    """

    token = TOKEN

    def __init__(self) -> None:
        super().__init__()
        self.repositories: dict[tuple[str, str], Repository] = {}

    def environment(self, home: str | Path) -> dict[str, str]:
        """The variables under which another process talks to this Hub, caching in ``home``."""
        return {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": self.token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        }

    def answer(self, call: Call) -> Answer:
        """Find the route of a request and take it."""
        if call.token and call.token not in (TOKEN, READ_TOKEN):
            raise HttpError(401, "Invalid credentials in Authorization header")
        for method, pattern, function in _ROUTES:
            match = pattern.fullmatch(call.path)
            if match and method == call.method:
                parts = {name: unquote(part or "") for name, part in match.groupdict().items()}
                if "prefix" in parts:
                    parts["type"] = "dataset" if parts.pop("prefix") else "model"
                return function(self, call, **parts)
        raise HttpError(404, f"no route for {call.method} {call.path}")

    def _found(self, call: Call, type: str, id: str, write: bool = False) -> Repository:
        repository = self.repositories.get((type, id))
        if repository is None or (repository.private and not call.token):
            status = 404 if call.token else 401  # who may not see it is not told that it is there
            raise HttpError(status, "Repository not found", "RepoNotFound")
        if write:
            self._check_writer(call)
        return repository

    def _check_writer(self, call: Call) -> None:
        if call.token != TOKEN:
            raise HttpError(403 if call.token else 401, "this takes a token that may write")

    def _page(self, type: str, id: str) -> str:
        return f"{self.endpoint}/{'datasets/' if type == 'dataset' else ''}{id}"

    @_route("GET", "/api/whoami-v2")
    def _whoami(self, call: Call) -> Answer:
        if not call.token:
            raise HttpError(401, "Invalid username or password.")
        role = "write" if call.token == TOKEN else "read"
        access = {"accessToken": {"displayName": "test", "role": role}}
        return Answer({"type": "user", "name": "tester", "orgs": [], "auth": access})

    @_route("POST", "/api/validate-yaml")
    def _validate(self, call: Call) -> Answer:
        tags = re.search("^tags: .*$", call.json["content"], re.MULTILINE)  # a list on more lines
        errors = [{"message": '"tags" must be an array'}] if tags else []
        return Answer({"errors": errors, "warnings": []}, status=400 if errors else 200)

    @_route("POST DELETE", "/api/repos/(?:create|delete)")
    def _repository(self, call: Call) -> Answer:
        asked = call.json
        type, id = asked.get("type") or "model", f"{asked['organization']}/{asked['name']}"
        if call.method == "DELETE":
            self._found(call, type, id, write=True)
            del self.repositories[type, id]
            return Answer()
        self._check_writer(call)
        answer = Answer({"url": self._page(type, id)})
        if (type, id) in self.repositories:
            answer.status = 409
        else:  # older clients say "private"
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            self.repositories[type, id] = Repository(type, id, private)
        return answer

    @_route("GET", f"/api/{_REPOSITORY}(?:/revision/(?P<revision>[^/]+))?")
    def _info(self, call: Call, type: str, id: str, revision: str) -> Answer:
        repository = self._found(call, type, id)
        commit = repository.resolve(revision or "main")
        siblings = []
        for path, blob in sorted(commit.files.items()):
            more = blob.describe() if call.asks("blobs") else {}
            siblings.append({"rfilename": path, "blobId": more.pop("oid", None)} | more)
        about = {"id": id, "private": repository.private, "sha": commit.sha, "siblings": siblings}
        return Answer(about | {"author": "tester", "lastModified": commit.date, "tags": []})

    @_route("GET", f"/api/{_REPOSITORY}/refs")
    def _refs(self, call: Call, **names: str) -> Answer:
        listed: dict[str, list[dict[str, str]]] = {"converts": []}
        refs = self._found(call, **names).refs
        for kind, prefix in _REFS.items():
            listed[kind] = [
                {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": sha}
                for ref, sha in refs.items()
                if ref.startswith(prefix)
            ]
        return Answer(listed)

    @_route("POST DELETE", f"/api/{_REPOSITORY}/branch/(?P<branch>[^/]+)")
    def _branch(self, call: Call, branch: str, **names: str) -> Answer:
        repository = self._found(call, **names, write=True)
        if call.method == "POST":
            repository.add_ref(f"refs/heads/{branch}", call.json.get("startingPoint", "main"))
        else:
            repository.remove_ref(f"refs/heads/{branch}")
        return Answer()

    @_route("POST DELETE", f"/api/{_REPOSITORY}/tag/(?P<name>[^/]+)")
    def _tag(self, call: Call, name: str, **names: str) -> Answer:
        repository = self._found(call, **names, write=True)
        if call.method == "POST":  # the name is what the tag is to be put on
            repository.add_ref(f"refs/tags/{call.json['tag']}", name)
        else:
            repository.remove_ref(f"refs/tags/{name}")
        return Answer()

    @_route("GET", f"/api/{_REPOSITORY}/commits/(?P<revision>[^/]+)")
    def _commits(self, call: Call, revision: str, **names: str) -> Answer:
        repository, history = self._found(call, **names), []
        sha = repository.resolve(revision).sha
        while sha:
            commit = repository.commits[sha]
            history.append(commit.describe() | {"authors": [{"user": "tester"}]})
            sha = commit.parent
        return Answer(history)

    @_route("GET", f"/api/{_REPOSITORY}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
    def _tree(self, call: Call, revision: str, path: str, **names: str) -> Answer:
        commit = self._found(call, **names).resolve(revision)
        return Answer(commit.entries(path, call.asks("recursive")))

    @_route("POST", f"/api/{_REPOSITORY}/paths-info/(?P<revision>[^/]+)")
    def _paths(self, call: Call, revision: str, **names: str) -> Answer:
        commit = self._found(call, **names).resolve(revision)
        asked = parse_qs(call.body.decode()).get("paths", [])
        return Answer([entry for entry in commit.entries() if entry["path"] in asked])

    @_route("POST", f"/api/{_REPOSITORY}/preupload/(?P<revision>[^/]+)")
    def _preupload(self, call: Call, revision: str, **names: str) -> Answer:
        commit, files = self._found(call, **names, write=True).resolve(revision), []
        for file in call.json["files"]:
            path = file["path"]
            mode = "lfs" if commit.keeps_large(path, file["size"]) else "regular"
            known = commit.files[path].etag if path in commit.files else None
            files.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": known})
        return Answer({"files": files})

    @_route("POST", f"{_PAGE}\\.git/info/lfs/objects/batch")
    def _batch(self, call: Call, type: str, id: str) -> Answer:
        repository, objects = self._found(call, type, id, write=True), []
        for item in call.json["objects"]:
            href = f"{self.endpoint}/lfs/{type}s/{id}/{item['oid']}"
            actions = {"upload": {"href": href}, "verify": {"href": href}}
            known = item["oid"] in repository.uploads
            objects.append(item if known else item | {"actions": actions})
        return Answer({"transfer": "basic", "objects": objects})

    @_route("PUT POST", f"/lfs/{_REPOSITORY}/(?P<oid>[0-9a-f]{{64}})")
    def _upload(self, call: Call, type: str, id: str, oid: str) -> Answer:
        uploads = self.repositories[type, id].uploads  # the address is the permission
        if call.method == "PUT":
            if hashlib.sha256(call.body).hexdigest() != oid:
                raise HttpError(400, "the content is not what its address says")
            uploads[oid] = call.body
        elif oid not in uploads or len(uploads[oid]) != call.json["size"]:
            raise HttpError(404, "the content is not there or has another size")
        return Answer()

    @_route("POST", f"/api/{_REPOSITORY}/commit/(?P<revision>[^/]+)")
    def _commit(self, call: Call, type: str, id: str, revision: str) -> Answer:
        repository = self._found(call, type, id, write=True)
        header, *changes = map(json.loads, call.body.splitlines())
        propose = call.asks("create_pr")
        commit = repository.commit(revision, header["value"], changes, propose)
        page = self._page(type, id)
        number = sum(ref.startswith("refs/pr/") for ref in repository.refs)
        pull_request = {"pullRequestUrl": f"{page}/discussions/{number}"} if propose else {}
        url = f"{page}/commit/{commit.sha}"
        return Answer({"commitOid": commit.sha, "commitUrl": url} | pull_request)

    @_route("GET HEAD", f"{_PAGE}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
    def _resolve(self, call: Call, revision: str, path: str, **names: str) -> Answer:
        commit = self._found(call, **names).resolve(revision)
        headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
        if path not in commit.files:
            raise HttpError(404, f"{path} does not exist on {revision!r}", "EntryNotFound", headers)
        blob = commit.files[path]
        size = len(blob.content)
        headers["ETag"] = f'"{blob.etag}"'
        if blob.large:
            headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(size)}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", call.headers.get("Range", ""))
        if not part:
            return Answer(blob.content, headers)
        start, end = int(part[1]), min(int(part[2] or size - 1), size - 1)
        if start >= size:
            return Answer(b"", headers | {"Content-Range": f"bytes */{size}"}, 416)
        headers["Content-Range"] = f"bytes {start}-{end}/{size}"
        return Answer(blob.content[start : end + 1], headers, 206)
