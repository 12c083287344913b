"""Publishing that breaks off, at every request there is, and is begun again."""

import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Callable
from functools import partial

import pytest
from hub_server import HubServer
from huggingface_hub import constants
from tiny.priors import prior

from hf_kfc.errors import HubError
from hf_kfc.priors import ConsolidationPrior

from .hub_cases import NAME, assert_published, public, push, repository, tags, titles

Begin = Callable[[HubServer], None]


def nothing(_: HubServer) -> None:
    """Publish where there is nothing yet."""


def an_older_prior(hub: HubServer) -> None:
    push(prior(seed=1), max_shard_size="1KB")


def requests_of_a_push(hub: HubServer, begin: Begin) -> int:
    """Count them, in a repository that is forgotten then."""
    begin(hub)
    before = len(hub.requests)
    push()
    count = len(hub.requests) - before
    forget(hub)
    return count


def forget(hub: HubServer) -> None:
    """Forget the repository, here and there."""
    del hub.repositories["model", NAME]
    shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)


def assert_whole(hub: HubServer, begin: Begin) -> None:
    """Whatever broke: one commit, one tag, the prior and nothing else."""
    published = push()
    older = 1 if begin is an_older_prior else 0
    assert titles(hub) == ["initial commit", *["Publish the prior of old"] * (older + 1)]
    assert len(tags(hub)) == older + 1
    assert repository(hub).resolve("main").sha == published.commit == tags(hub)[published.tag or ""]
    assert repository(hub).resolve("main").files.keys() == {
        ".gitattributes",
        "README.md",
        "config.json",
        "prior.safetensors",
    }
    assert_published(published, public())


def assert_no_half(hub: HubServer) -> None:
    """Every commit with a prior's description has the whole of it."""
    there = hub.repositories.get(("model", NAME))
    for sha, commit in there.commits.items() if there else ():
        if "config.json" in commit.files:
            ConsolidationPrior.from_pretrained(NAME, revision=sha)


@pytest.mark.parametrize("at", ["request", "response"])
@pytest.mark.parametrize("begin", [nothing, an_older_prior])
def test_the_connection_is_cut_in_each_request(begin: Begin, at: str, hub: HubServer) -> None:
    count = requests_of_a_push(hub, begin)
    assert count >= 10
    refused = 0
    for n in range(count):
        begin(hub)
        hub.cut("*", "", at=at, skip=n)  # type: ignore[arg-type]
        try:
            push()
        except HubError as error:
            refused += 1
            assert re.match(f"{NAME}.*try again|config.json of {NAME}", str(error))
            assert "\n" not in str(error)
        hub.forget_faults()
        assert_no_half(hub)
        assert_whole(hub, begin)
        forget(hub)
    assert refused  # what the client tries again by itself may have succeeded


@pytest.mark.parametrize("status", [403, 429, 500, 503])
def test_the_hub_fails_from_one_request_on(status: int, hub: HubServer) -> None:
    count = requests_of_a_push(hub, nothing)
    for n in range(count):
        hub.fail("*", "", status=status, times=100, skip=n)
        with pytest.raises(HubError):
            push()
        hub.forget_faults()
        assert_no_half(hub)
        assert_whole(hub, nothing)
        forget(hub)


MISREAD = [[], None, 5, {}, {"siblings": [{}]}, {"siblings": 3, "sha": None}, [{"type": "file"}]]


@pytest.mark.parametrize("body", MISREAD, ids=str)
def test_an_answer_has_another_shape(body: object, hub: HubServer) -> None:
    count = requests_of_a_push(hub, nothing)
    refused = 0
    for n in range(count):
        hub.say("*", "", body, skip=n)
        try:
            push()
        except HubError as error:
            refused += 1
            assert re.match(f"{NAME}.*try again|.*of {NAME}", str(error))
            assert "\n" not in str(error)
        hub.forget_faults()
        assert_no_half(hub)
        assert_whole(hub, nothing)
        forget(hub)
    assert refused  # what the client does not read may be anything


@pytest.mark.parametrize("begin", [nothing, an_older_prior])
def test_the_process_is_killed_at_each_request(begin: Begin, hub: HubServer) -> None:
    count = requests_of_a_push(hub, begin)
    for n in range(count):
        begin(hub)
        process = multiprocessing.get_context("fork").Process(target=push)
        hub.before("*", "", partial(_kill, process), skip=n)
        process.start()
        process.join(timeout=60)
        assert process.exitcode == -signal.SIGKILL, n
        assert_no_half(hub)
        assert_whole(hub, begin)
        forget(hub)


def _kill(process: multiprocessing.process.BaseProcess) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
