"""Pushing a model: what leaves this machine, and what is in the repository afterwards."""

import logging
import multiprocessing
import os
import signal
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest.mock import Mock

import pytest
from hub_http import Answer
from hub_repository import Repository
from hub_server import HubServer
from huggingface_hub import CommitOperationAdd, HfApi

from hf_kfc.errors import HubError
from hf_kfc.hub import MODEL_FILES, PushedModel, push_card, push_model
from hf_kfc.hub import push as push_module

NAME = "org/model"
PUSHED = {
    "model.safetensors": b"weights" * 100,
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "results.json": b"[1]",
    "forgetting.png": b"picture",
}
PRIVATE = {
    ".env": b"HF_TOKEN=secret",
    "patients.csv": b"Arzt,Meier",
    "optimizer.pt": b"pickle",
    "training_args.bin": b"pickle",
    ".hidden.png": b"picture",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tier1"
    folder.mkdir()
    for name, content in (PUSHED | PRIVATE).items():
        (folder / name).write_bytes(content)
    (folder / "README.md").write_text("the Trainer's")
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "model.safetensors").write_bytes(b"older")
    return folder


def push(folder: Path, **options: object) -> PushedModel:
    return push_model(folder, NAME, **{"card": "# First", **options})  # type: ignore[arg-type]


def files(hub: HubServer) -> dict[str, bytes]:
    found = hub.repositories["model", NAME].resolve("main").files
    return {path: blob.content for path, blob in found.items() if path != ".gitattributes"}


def titles(hub: HubServer) -> list[str]:
    return [commit.title for commit in reversed(HfApi().list_repo_commits(NAME))]


def test_a_named_list_of_files_is_pushed_and_what_is_left_is_said(
    folder: Path, hub: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    pushed = push(folder)
    assert files(hub) == {**PUSHED, "README.md": b"# First"}
    repository: Repository = hub.repositories["model", NAME]
    assert repository.private
    assert str(pushed) == f"{NAME}@{repository.resolve('main').sha}"
    assert pushed.url == f"{hub.endpoint}/{NAME}/tree/{pushed.commit}"
    assert set(pushed.files) == PUSHED.keys()
    assert set(pushed.left) == PRIVATE.keys() | {"checkpoint-5/"}
    assert caplog.messages == [f"left in {folder} and not pushed: {', '.join(pushed.left)}"]
    secrets = [PRIVATE[name] for name in (".env", "patients.csv", "optimizer.pt")]
    stored = [blob.content for c in repository.commits.values() for blob in c.files.values()]
    assert not any(secret in content for secret in secrets for content in stored)


def test_more_files_are_named_by_the_caller(folder: Path, hub: HubServer) -> None:
    push(folder, files=[*MODEL_FILES, "*.csv", "*"])
    visible = {name for name in PUSHED | PRIVATE if not name.startswith(".")}
    assert files(hub).keys() == visible | {"README.md"}


def test_one_pattern_needs_no_list_and_names_are_shown_escaped(
    folder: Path, hub: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "\x1b[2J").write_text("")
    for n in range(200):
        (folder / f"checkpoint-{n}").mkdir(exist_ok=True)
    pushed = push(folder, files="*.safetensors")
    assert pushed.files == ("model.safetensors",)
    assert "\x1b[2J" in pushed.left
    (message,) = caplog.messages
    assert message.isprintable()
    assert len(message) < 1000


def test_what_is_there_is_not_pushed_again(folder: Path, hub: HubServer) -> None:
    first = push(folder)
    push_card(NAME, "# With its prior")
    uploads = len(hub.asked("PUT", "/lfs/"))
    again = push(folder)
    assert push_card(NAME, "# With its prior") == str(again)
    assert again.commit != first.commit
    assert titles(hub) == ["initial commit", "Push the model", "Replace the card"]
    assert len(hub.asked("PUT", "/lfs/")) == uploads
    # New weights do not stand beside a card that tells of the older ones.
    (folder / "model.safetensors").unlink()
    for n in (1, 2):
        (folder / f"model-0000{n}-of-00002.safetensors").write_bytes(bytes(n))
    push(folder)
    assert files(hub)["README.md"] == b"# First"
    assert "model.safetensors" not in files(hub)


def test_a_file_of_the_same_size_is_another(folder: Path, hub: HubServer) -> None:
    push(folder)
    for name in ("model.safetensors", "config.json"):
        content = b"x" * len(PUSHED[name])
        (folder / name).write_bytes(content)
        push(folder)
        assert files(hub)[name] == content


def test_commits_of_others_meanwhile_stay(folder: Path, hub: HubServer) -> None:
    def meanwhile() -> None:
        operations = [CommitOperationAdd("notes.txt", b"theirs")]
        HfApi().create_commit(NAME, operations, commit_message="theirs")

    hub.before("POST", "/commit/", meanwhile)
    push(folder)
    assert files(hub)["notes.txt"] == b"theirs"
    assert titles(hub) == ["initial commit", "theirs", "Push the model"]


def test_a_card_is_not_put_on_what_it_does_not_tell_of(folder: Path, hub: HubServer) -> None:
    pushed = push(folder)

    def meanwhile() -> None:
        operations = [CommitOperationAdd("model.safetensors", b"theirs")]
        HfApi().create_commit(NAME, operations, commit_message="theirs")

    hub.before("POST", "/commit/", meanwhile)
    for _ in range(2):
        with pytest.raises(HubError, match=f"{NAME} has changed since {pushed.commit}, of which"):
            push_card(NAME, "# With its prior", parent=pushed.commit)
    assert files(hub)["README.md"] == b"# First"
    again = push(folder)
    push_card(NAME, "# With its prior", parent=again.commit)
    push_card(NAME, "# With its prior", parent=pushed.commit)  # it is there
    assert files(hub) == {**PUSHED, "README.md": b"# With its prior"}


@pytest.mark.parametrize("kill", [False, True])
def test_whatever_breaks_it_is_whole_afterwards(kill: bool, folder: Path, hub: HubServer) -> None:
    push(folder)
    count = len(hub.requests)
    for n in range(count):
        del hub.repositories["model", NAME]
        if kill:
            process = multiprocessing.get_context("fork").Process(target=push, args=[folder])
            hub.before("*", "", partial(_kill, process), skip=n)
            process.start()
            process.join(timeout=60)
            assert process.exitcode == -signal.SIGKILL, n
        else:
            hub.fail("*", "", status=500, times=100, skip=n)
            with pytest.raises(HubError, match=rf"^{NAME}: .*try again"):
                push(folder)
            hub.forget_faults()
        there = hub.repositories.get(("model", NAME))
        for commit in there.commits.values() if there else ():
            assert commit.files.keys() - {".gitattributes"} in (set(), {*PUSHED, "README.md"})
        push(folder)
        assert files(hub) == {**PUSHED, "README.md": b"# First"}
        assert titles(hub) == ["initial commit", "Push the model"]


def _kill(process: BaseProcess) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)


def test_what_is_refused(folder: Path, hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"nowhere is no folder; give the one that save_pretrained"):
        push(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(HubError, match="empty has no weights to push; save the model"):
        push(tmp_path / "empty")
    assert not hub.requests
    push(folder)
    with pytest.raises(HubError, match=f"{NAME} is there and private; pass private=True"):
        push(folder, private=False)
    operations = [CommitOperationAdd("prior.safetensors", b"prior")]
    HfApi().create_commit(NAME, operations, commit_message="a prior")
    with pytest.raises(HubError, match=f"{NAME} holds a prior; give the model another"):
        push(folder)
    with pytest.raises(HubError, match="there is no such repository"):
        push_card("org/none", "# Card")


def test_a_card_that_the_hub_does_not_take(folder: Path, hub: HubServer) -> None:
    hub.fail("POST", "/validate-yaml", status=400, times=9)
    with pytest.raises(HubError, match=rf"^{NAME}: .*not pushed.*try again"):
        push(folder, card="---\nlicense: 1\n---\n")


@pytest.mark.parametrize("body", [b"<html>Log in to this network</html>", b""])
def test_what_answers_is_no_hub(
    body: bytes, folder: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HubServer, "answer", lambda *_: Answer(body))
    with pytest.raises(HubError, match=rf"^{NAME}: .*not pushed, .*its answer is not JSON.*again"):
        push(folder)


def test_a_fault_of_the_program_stays_one(
    folder: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    for fault in (ValueError("max() arg is an empty sequence"), RuntimeError("no")):
        monkeypatch.setattr(push_module, "holds", Mock(side_effect=fault))
        with pytest.raises(type(fault)) as raised:
            push(folder)
        assert raised.value is fault
