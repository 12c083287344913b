"""The Hub of the tests, by what the real client makes of it."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import READ_TOKEN
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

NAME = "org/name"
LARGE = bytes(range(256)) * 64
FILES = {"config.json": b"{}", "prior.safetensors": LARGE, "sub/folder/notes.txt": b"some notes"}


def additions(files):
    return [CommitOperationAdd(path, content) for path, content in files.items()]


@pytest.fixture
def api(hub):
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo(NAME, private=True)
    return api


@pytest.fixture
def commit(api):
    return api.create_commit(NAME, additions(FILES), commit_message="all of it").oid


@pytest.fixture
def download(hub, tmp_path):
    def download(file, **options):
        options = {"token": hub.token, "cache_dir": tmp_path / "cache"} | options
        return Path(hf_hub_download(NAME, file, endpoint=hub.endpoint, **options))

    return download


def status(error):
    return error.value.response.status_code


def test_one_commit_holds_small_and_large_files(hub, api, commit):
    assert len(hub.asked("POST", "/commit/main")) == 1
    digest = hashlib.sha256(LARGE).hexdigest()
    assert [r.status for r in hub.asked("PUT", "/lfs/")] == [200]
    assert [r.path for r in hub.asked("POST", "^/lfs/")] == [f"/lfs/models/{NAME}/{digest}"]
    info = api.model_info(NAME, files_metadata=True)
    assert (info.sha, info.private) == (commit, True)
    sizes = {file.rfilename: file.size for file in info.siblings}
    assert sizes.items() >= {path: len(content) for path, content in FILES.items()}.items()
    assert {f.rfilename: f.lfs.sha256 for f in info.siblings if f.lfs} == {
        "prior.safetensors": digest
    }
    assert [c.title for c in api.list_repo_commits(NAME)] == ["all of it", "initial commit"]


def test_tree_and_paths(api, commit):
    tree = {entry.path: entry for entry in api.list_repo_tree(NAME, recursive=True, expand=True)}
    assert tree.keys() == FILES.keys() | {".gitattributes", "sub", "sub/folder"}
    assert tree["prior.safetensors"].lfs.size == len(LARGE)
    assert tree["config.json"].last_commit.oid == commit
    assert [entry.path for entry in api.list_repo_tree(NAME, "sub")] == ["sub/folder"]
    assert [entry.path for entry in api.get_paths_info(NAME, ["config.json", "no"])] == [
        "config.json"
    ]


def test_a_stale_parent_is_refused_and_changes_nothing(api, commit):
    parent = api.list_repo_commits(NAME)[1].commit_id
    for stale in (parent, "0" * 40):
        with pytest.raises(HfHubHTTPError) as error:
            api.create_commit(
                NAME, additions({"new": b"1"}), commit_message="late", parent_commit=stale
            )
        assert status(error) == 412
    assert api.model_info(NAME).sha == commit
    after = api.create_commit(
        NAME, [CommitOperationDelete("sub/")], commit_message="less", parent_commit=commit
    )
    assert "sub/folder/notes.txt" not in api.list_repo_files(NAME)
    assert "sub/folder/notes.txt" in api.list_repo_files(NAME, revision=commit)
    assert after.oid == api.model_info(NAME).sha


def test_branches_tags_and_pull_requests(api, commit, download):
    api.create_tag(NAME, tag="v1", revision=commit)
    api.create_branch(NAME, branch="try/it")
    tried = api.create_commit(
        NAME, additions({"config.json": b"[]"}), commit_message="try", revision="try/it"
    )
    proposed = api.create_commit(
        NAME, additions({"more": b"1"}), commit_message="propose", create_pr=True
    )
    assert proposed.pr_revision == "refs/pr/1"
    assert "more" in api.list_repo_files(NAME, revision="refs/pr/1")
    refs = api.list_repo_refs(NAME, include_pull_requests=True)
    assert {b.name: b.target_commit for b in refs.branches} == {"main": commit, "try/it": tried.oid}
    assert [(t.name, t.target_commit) for t in refs.tags] == [("v1", commit)]
    assert [p.target_commit for p in refs.pull_requests] == [proposed.oid]
    assert download("config.json", revision="try/it").read_bytes() == b"[]"
    assert download("config.json", revision="v1").read_bytes() == b"{}"
    with pytest.raises(HfHubHTTPError) as error:
        api.create_tag(NAME, tag="v1", revision="try/it")
    assert status(error) == 409
    api.delete_tag(NAME, tag="v1")
    api.delete_branch(NAME, branch="try/it")
    with pytest.raises(RevisionNotFoundError):
        api.model_info(NAME, revision="v1")
    assert len(api.list_repo_refs(NAME).branches) == 1


def test_who_may_see_and_write(hub, api, commit, download):
    reader = HfApi(endpoint=hub.endpoint, token=READ_TOKEN)
    assert reader.model_info(NAME).sha == commit
    with pytest.raises(HfHubHTTPError) as error:
        reader.create_commit(NAME, additions({"a": b"1"}), commit_message="no")
    assert status(error) == 403
    for token in (False, "wrong"):
        with pytest.raises(HfHubHTTPError) as error:
            HfApi(endpoint=hub.endpoint, token=token).model_info(NAME)
        assert status(error) == 401
    with pytest.raises(RepositoryNotFoundError):
        download("config.json", token=False)
    with pytest.raises(RepositoryNotFoundError):  # another type of repository
        api.dataset_info(NAME)
    with pytest.raises(EntryNotFoundError):
        download("missing.json")
    assert (api.whoami()["name"], reader.whoami()["auth"]["accessToken"]["role"]) == (
        "tester",
        "read",
    )
    with pytest.raises(HfHubHTTPError) as error:
        api.create_repo(NAME)
    assert status(error) == 409
    assert api.create_repo(NAME, exist_ok=True).repo_id == NAME
    api.delete_repo(NAME)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info(NAME)


def test_a_cached_sha_takes_no_request(hub, commit, download):
    first = download("prior.safetensors", revision=commit)
    assert first.read_bytes() == LARGE
    before = len(hub.requests)
    assert download("prior.safetensors", revision=commit) == first
    assert len(hub.requests) == before


def test_snapshot_of_some_files_and_offline_after(hub, commit, tmp_path):
    options = {
        "allow_patterns": ["*.json", "*.safetensors"],
        "cache_dir": tmp_path,
        "endpoint": hub.endpoint,
        "token": hub.token,
    }
    folder = snapshot_download(NAME, **options)
    files = sorted(p.name for p in tmp_path.joinpath(folder).rglob("*") if p.is_file())
    assert (files, folder.endswith(commit)) == (["config.json", "prior.safetensors"], True)
    hub.close()
    script = f"""
from huggingface_hub import hf_hub_download
print(hf_hub_download({NAME!r}, "config.json", cache_dir={str(tmp_path)!r}))
"""
    out = subprocess.run(
        [sys.executable, "-c", script],
        env=hub.environment(tmp_path) | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert out.strip() == f"{folder}/config.json"


def test_a_download_cut_half_way_goes_on_where_it_was(hub, commit, download, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)
    hub.cut("GET", "prior.safetensors", at="response")
    assert download("prior.safetensors").read_bytes() == LARGE
    assert [r.status for r in hub.asked("GET", "/resolve/")] == [0, 206]


def test_faults_of_a_commit(hub, api, commit):
    """An upload is tried again; a commit is undone, or done without the client's knowing."""
    hub.fail("PUT", "/lfs/", status=503)
    api.create_commit(NAME, additions({"b.bin": b"2"}), commit_message="tried twice")
    assert [r.status for r in hub.asked("PUT", "/lfs/")] == [200, 503, 200]
    head = api.model_info(NAME).sha
    hub.fail("POST", "/commit/", status=500)
    hub.cut("POST", "/commit/", at="request")
    for _ in range(2):
        with pytest.raises(Exception, match=r"500|disconnected"):
            api.create_commit(NAME, additions({"c": b"3"}), commit_message="undone")
        assert api.model_info(NAME).sha == head
    hub.cut("POST", "/commit/", at="response")
    with pytest.raises(Exception, match="without sending complete message body"):
        api.create_commit(NAME, additions({"c": b"3"}), commit_message="done")
    assert api.list_repo_commits(NAME)[0].title == "done"


def test_another_commit_just_before_ours(hub, api, commit):
    def other():
        api.create_commit(NAME, additions({"theirs": b"1"}), commit_message="theirs")

    hub.before("POST", "/commit/", other)
    with pytest.raises(HfHubHTTPError) as error:
        api.create_commit(
            NAME, additions({"ours": b"1"}), commit_message="ours", parent_commit=commit
        )
    assert status(error) == 412
    assert {"theirs"} == {"ours", "theirs"} & set(api.list_repo_files(NAME))


DATASETS = f"""
import datasets
one = datasets.Dataset.from_dict({{"a": [1, 2], "b": ["x", "y"]}})
one.push_to_hub({NAME!r}, "first", private=True)
one.select([1]).push_to_hub({NAME!r}, "second")
for name, rows in (("first", 2), ("second", 1)):
    back = datasets.load_dataset({NAME!r}, name)["train"]
    assert back.to_list() == one.to_list()[-rows:], back.to_list()
"""


def test_datasets_come_back_as_they_were_pushed(hub, tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", DATASETS],
        env=hub.environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    repository = hub.repositories["dataset", NAME]
    assert repository.private
    assert {path.split("/")[0] for path in repository.resolve("main").files} == {
        ".gitattributes",
        "README.md",
        "first",
        "second",
    }
