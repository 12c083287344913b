"""Publishing a prior: what is in the repository afterwards."""

import logging
import re
import threading
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from hub_server import READ_TOKEN, HubServer
from huggingface_hub import HfApi
from tiny.priors import PROVENANCE, prior

from hf_kfc.curvature import Curvature
from hf_kfc.errors import HfKfcError, HubError, PriorError
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.priors import push as push_module

from .hub_cases import (
    NAME,
    assert_published,
    public,
    push,
    put,
    repository,
    tags,
    titles,
)

WEIGHTS = {"config.json": b'{"model_type": "bert"}', "model.safetensors": b"weights"}


def of_task(task: str, seed: int = 0) -> ConsolidationPrior:
    made = prior(seed)
    return ConsolidationPrior(made.anchor, made.curvature, replace(PROVENANCE, task=task))


def refusal(**options: object) -> str:
    with pytest.raises(HfKfcError) as error:
        push(**options)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- What is published ---------------------------------------------------------------------------


def test_one_private_commit_with_a_tag(hub: HubServer) -> None:
    published = push(max_shard_size="1KB", card="# The card")
    there = repository(hub)
    assert there.private
    assert titles(hub) == ["initial commit", "Publish the prior of old"]
    assert tags(hub) == {f"old-{public().fingerprint[:12]}": published.commit}
    assert published.url == f"{hub.endpoint}/{NAME}/tree/{published.tag}"
    files = there.resolve("main").files
    shards = [name for name in files if re.fullmatch(r"prior-\d{5}-of-\d{5}.safetensors", name)]
    assert len(shards) > 1
    assert files.keys() - set(shards) == {
        ".gitattributes",
        "README.md",
        "config.json",
        "prior.safetensors.index.json",
    }
    assert files["README.md"].content == b"# The card"
    assert_published(published, public())


def test_without_a_card_one_is_written(hub: HubServer) -> None:
    push(of_task("Arzt & <Patient>"))
    card = repository(hub).resolve("main").files["README.md"].content.decode()
    assert card.startswith("---\n")
    assert "Arzt & &lt;Patient&gt;" in card
    (tag,) = tags(hub)
    assert tag.startswith("Arzt-Patient-")


def test_who_may_read_it(hub: HubServer, tmp_path: Path) -> None:
    published = push()
    load = ConsolidationPrior.from_pretrained
    assert load(NAME, token=READ_TOKEN).source is not None
    with pytest.raises(PriorError, match="the Hub answers 401, Invalid credentials"):
        load(NAME, token="wrong", cache_dir=tmp_path)
    with pytest.raises(HubError, match="org/prior is there and private; pass private=True"):
        push(private=False)
    assert push(repo_id="org/open", private=False).commit != published.commit
    assert not repository(hub, "org/open").private
    with pytest.raises(HubError, match="org/open is there and public; pass private=False"):
        push(repo_id="org/open")


def test_a_newer_prior_replaces_the_files_of_an_older_one(hub: HubServer) -> None:
    first = push(max_shard_size="1KB")
    put({"notes.txt": b"beside it"}, NAME)
    second = push(prior(seed=1))
    assert repository(hub).resolve("main").files.keys() == {
        ".gitattributes",
        "README.md",
        "config.json",
        "notes.txt",
        "prior.safetensors",
    }
    assert_published(first, public())
    assert_published(second, public(seed=1))
    assert len(tags(hub)) == 2


def test_rare_tokens_are_left_out_and_it_is_said(
    hub: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    made = prior()
    counted = replace(
        made.curvature.blocks[0], input_examples=torch.tensor([30.0, 2.0, 10.0, 9.0, 0.0])
    )
    others = tuple(b for b in made.curvature.blocks if b.name in ("query", "key"))
    curvature = replace(made.curvature, blocks=(counted, *others))
    anchor = {n: v for n, v in made.anchor.items() if n in curvature.parameters}
    origin = replace(PROVENANCE, min_token_examples=10)
    local = ConsolidationPrior(anchor, curvature, origin)
    with caplog.at_level(logging.WARNING, "hf_kfc"):
        for refused in ({"anchor": "org/model@main"}, {"tag": "a b"}):
            with pytest.raises(HfKfcError, match=r"is not pinned by 'main'|'a b' cannot be a tag"):
                local.push_to_hub(NAME, **refused)
        assert not caplog.messages, "it tells of a push that is refused"
        local.push_to_hub(NAME)
    assert caplog.messages == [
        "will be pushed without 3 tokens of words that fewer than 10 examples have"
    ]
    loaded = ConsolidationPrior.from_pretrained(NAME)
    (words,) = (b for b in loaded.curvature.blocks if b.name == "words")
    assert words.inputs is not None
    assert words.inputs.tolist() == [0, 2]
    assert words.input_examples is None
    row = made.anchor["words.weight"][1].numpy().tobytes()
    stored = [blob.content for c in repository(hub).commits.values() for blob in c.files.values()]
    assert any(made.anchor["words.weight"][2].numpy().tobytes() in content for content in stored)
    assert not any(row in content for content in stored)
    uncounted = replace(curvature, blocks=(made.curvature.blocks[0], *others))
    with pytest.raises(PriorError, match="does not tell in how many examples"):
        ConsolidationPrior(anchor, uncounted, PROVENANCE).push_to_hub(NAME)


def test_a_curvature_made_of_the_tokens_left_out_is_told(
    hub: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    """They are in the span of A of the next layer, unless they were counted before."""
    made = prior()
    words, query = made.curvature.blocks[:2]
    counted = replace(words, input_examples=torch.tensor([30.0, 2.0, 10.0, 9.0, 0.0]))
    curvature = Curvature((counted, query), 40, made.curvature.ignored)
    anchor = {n: v for n, v in made.anchor.items() if n in curvature.parameters}
    for before, warned in ((0, True), (9, True), (10, False)):
        caplog.clear()
        origin = replace(PROVENANCE, min_token_examples=before)
        ConsolidationPrior(anchor, curvature, origin).push_to_hub(f"org/of-{before}")
        told = [m for m in caplog.messages if "the A of query spans, 5 inputs from 40 ex" in m]
        assert bool(told) is warned
        assert all("min_token_examples=10" in message for message in told)


def test_too_few_examples_for_the_width_are_refused(hub: HubServer) -> None:
    """Their span gives away the tokens that are left out; nothing is pushed then."""
    made = prior()
    words, query = made.curvature.blocks[:2]
    counted = replace(words, input_examples=torch.tensor([3.0, 2.0, 4.0, 1.0, 0.0]))
    anchor = {n: v for n, v in made.anchor.items() if n in {**words.shapes, **query.shapes}}
    few, enough = (Curvature((counted, query), n, made.curvature.ignored) for n in (4, 5))
    told = "4 examples for the 5 inputs of query.*min_token_examples=10"
    one = ConsolidationPrior(anchor, few, PROVENANCE)
    for refused in (one, ConsolidationPrior.merge([one, one])):  # which has no more examples
        with pytest.raises(PriorError, match=told):
            refused.push_to_hub(NAME)
    assert not hub.repositories
    unseen = replace(PROVENANCE, min_token_examples=10)
    for name, curvature, origin, least in (
        ("enough", enough, PROVENANCE, 10),
        ("unseen", few, unseen, 10),
        ("all", few, PROVENANCE, 0),
    ):
        local = ConsolidationPrior(anchor, curvature, origin)
        assert local.push_to_hub(f"org/{name}", min_examples=least).tag is not None


# --- Branches, tags, proposals -------------------------------------------------------------------


def test_a_branch_is_made_where_it_is_missing(hub: HubServer) -> None:
    published = push(revision="try", tag="v1.0", commit_message="Try it")
    assert titles(hub) == ["initial commit"]
    assert titles(hub, "try") == ["initial commit", "Try it"]
    assert tags(hub) == {"v1.0": published.commit}
    second = push(prior(seed=1), revision="try")
    assert repository(hub).resolve("try").sha == second.commit
    assert_published(published, public())


def test_a_pull_request_has_no_tag(hub: HubServer, caplog: pytest.LogCaptureFixture) -> None:
    push(prior(seed=1))
    proposed = push(create_pr=True)
    assert (proposed.tag, proposed.pr_revision) == (None, "refs/pr/1")
    assert proposed.url == f"{hub.endpoint}/{NAME}/discussions/1"
    assert caplog.messages[-1] == f"{proposed.url} is proposed, and has no tag"
    assert len(tags(hub)) == 1
    load = ConsolidationPrior.from_pretrained
    assert load(NAME).fingerprint == public(seed=1).fingerprint
    assert load(NAME, revision="refs/pr/1").fingerprint == public().fingerprint
    assert str(load(NAME, revision="refs/pr/1").source) == f"{NAME}@{proposed.commit}"
    assert push(prior(seed=1), create_pr=True).pr_revision is None  # it is there
    assert "tag 'v1' is given for a pull request" in refusal(create_pr=True, tag="v1")


def test_a_taken_tag_is_refused_before_anything_is_committed(
    hub: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    first = push(tag="v1")
    assert refusal(pushed=prior(seed=1), tag="v1") == (
        f"tag 'v1' of {NAME} is at {first.commit}, which is not this prior; give another tag"
    )
    other_metrics = replace(PROVENANCE, anchor_metrics={"accuracy": 0.5})
    made = prior()
    told_otherwise = ConsolidationPrior(made.anchor, made.curvature, other_metrics)
    assert "is not this prior" in refusal(pushed=told_otherwise, tag="v1")
    assert len(titles(hub)) == 2
    assert push(tag="v1") == first
    assert caplog.messages == [f"{first.url} holds the prior already: nothing is pushed"]


@pytest.mark.parametrize("where", ["main", "tag"])
def test_a_damaged_copy_of_the_same_size_is_mended(where: str, hub: HubServer) -> None:
    """Sums are compared: an equal size alone is not the prior."""
    first = push()
    content = repository(hub).resolve("main").files["prior.safetensors"].content
    damaged = put({"prior.safetensors": content[:-8] + bytes(8)}, NAME)
    if where == "tag":
        HfApi().delete_tag(NAME, tag=str(first.tag))
        HfApi().create_tag(NAME, tag=str(first.tag), revision=damaged)
    with pytest.raises(PriorError, match="is damaged"):
        ConsolidationPrior.from_pretrained(NAME)
    mended = push()
    assert mended.tag == first.tag
    assert repository(hub).resolve("main").sha == mended.commit != damaged
    assert_published(replace(mended, tag="main"), public())
    assert ConsolidationPrior.from_pretrained(NAME, revision=first.tag).fingerprint
    assert push().commit == (first.commit if where == "main" else mended.commit)
    assert len(titles(hub)) == 4


def test_a_fault_of_the_program_is_not_told_as_one_of_the_hub(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fault in (ValueError("max() arg is an empty sequence"), RuntimeError("no"), KeyError("x")):
        monkeypatch.setattr(push_module._Push, "_changes", Mock(side_effect=fault))
        with pytest.raises(type(fault)) as raised:
            push()
        assert raised.value is fault


def test_a_second_tag_or_card_makes_no_second_commit(hub: HubServer) -> None:
    first = push(tag="v1")
    second = push(tag="v2", card="# Another")
    assert (first.commit, len(titles(hub))) == (second.commit, 2)
    assert tags(hub) == {"v1": first.commit, "v2": first.commit}


@pytest.mark.parametrize("tag", ["a b", "../x", "a..b", "-x", "x.lock", "x/y", "x.", "v1\n"])
def test_a_tag_that_git_would_not_take(tag: str, hub: HubServer) -> None:
    assert "cannot be a tag" in refusal(tag=tag)
    assert not hub.requests


def test_a_tag_taken_while_we_publish(hub: HubServer) -> None:
    api = HfApi()
    hub.before("POST", "/tag/", lambda: api.create_tag(NAME, tag="v1"))
    assert push(tag="v1").commit == tags(hub)["v1"]  # somebody else published the same prior
    first = repository(hub).resolve("main").parent
    hub.before("POST", "/tag/", lambda: api.create_tag(NAME, tag="v2", revision=first))
    assert refusal(pushed=prior(seed=1), tag="v2").startswith(f"tag 'v2' of {NAME} is at {first}")
    done = titles(hub)
    assert_published(push(prior(seed=1), tag="v3"), public(seed=1))
    assert titles(hub) == done


@pytest.mark.parametrize("options", [{}, {"create_pr": True}, {"revision": "new"}])
def test_a_model_is_not_overwritten(options: dict[str, object], hub: HubServer) -> None:
    put(WEIGHTS, NAME)
    before = dict(repository(hub).refs)
    assert refusal(**options) == (
        f"{NAME} holds config.json, model.safetensors and no prior; choose another repository"
    )
    assert repository(hub).refs == before


def test_a_repository_with_a_card_only_is_written(hub: HubServer) -> None:
    put({"README.md": b"soon"}, NAME)
    assert_published(push(), public())


def test_names_that_the_hub_or_we_do_not_take(hub: HubServer) -> None:
    assert refusal(repo_id="a/b/c").startswith("a/b/c: the prior of 'old' is not pushed")
    assert "Invalid metadata" in refusal(card="---\ntags: 3\n---\n")
    assert "this takes a token that may write" in refusal(token=READ_TOKEN, repo_id="org/x")
    assert titles(hub) == ["initial commit"]


# --- Others at the same time ---------------------------------------------------------------------


def test_publishing_on_top_of_a_commit_made_meanwhile(hub: HubServer) -> None:
    other = {}
    hub.before("POST", "/commit/", lambda: other.update(it=push(prior(seed=1))))
    mine = push()
    assert [r.status for r in hub.asked("POST", "/commit/")] == [200, 412, 200]
    assert titles(hub) == ["initial commit", *["Publish the prior of old"] * 2]
    assert repository(hub).resolve("main").sha == mine.commit
    assert_published(mine, public())
    assert_published(other["it"], public(seed=1))


def test_the_same_prior_published_meanwhile(hub: HubServer) -> None:
    other = {}
    hub.before("POST", "/commit/", lambda: other.update(it=push()))
    assert push() == other["it"]
    assert titles(hub) == ["initial commit", "Publish the prior of old"]


def test_a_repository_in_which_too_much_happens(hub: HubServer) -> None:
    push()
    hub.fail("POST", "/commit/", status=412, times=5)
    message = refusal(pushed=prior(seed=1))
    assert message.startswith(f"{NAME}: the prior of 'old' is not pushed, or without an answer (")
    assert len(titles(hub)) == 2
    assert_published(push(prior(seed=1)), public(seed=1))


def test_two_publishers_at_once(hub: HubServer) -> None:
    made, published = [prior(seed) for seed in (1, 2)], {}
    barrier = threading.Barrier(2)

    def publish(index: int) -> None:
        barrier.wait()
        published[index] = push(made[index])

    threads = [threading.Thread(target=publish, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for index, seed in enumerate((1, 2)):
        assert_published(published[index], public(seed))
    assert len(tags(hub)) == 2
    assert len(titles(hub)) == 3
