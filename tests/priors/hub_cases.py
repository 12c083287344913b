"""Priors and models on the tests' Hub."""

from hub_repository import Repository
from hub_server import HubServer
from huggingface_hub import CommitOperationAdd, HfApi
from safetensors.torch import save
from tiny.priors import assert_equal_priors, prior
from torch import Tensor

from hf_kfc.priors import ConsolidationPrior, PushedPrior
from hf_kfc.priors.privacy import without_rare_inputs

NAME = "org/prior"
MODEL = "org/model"


def push(
    pushed: ConsolidationPrior | None = None, repo_id: str = NAME, **options: object
) -> PushedPrior:
    """Publish the sample prior, whose embeddings have no counts of examples."""
    return (pushed or prior()).push_to_hub(repo_id, **{"min_examples": 0, **options})


def public(seed: int = 0) -> ConsolidationPrior:
    """What is published of the sample prior by :func:`push`."""
    return without_rare_inputs(prior(seed), 0)


def repository(hub: HubServer, repo_id: str = NAME) -> Repository:
    return hub.repositories["model", repo_id]


def tags(hub: HubServer, repo_id: str = NAME) -> dict[str, str]:
    refs = repository(hub, repo_id).refs
    return {ref.removeprefix("refs/tags/"): sha for ref, sha in refs.items() if "/tags/" in ref}


def titles(hub: HubServer, revision: str = "main", repo_id: str = NAME) -> list[str]:
    """The titles of a branch's commits, the first one first."""
    there, found = repository(hub, repo_id), []
    sha = there.resolve(revision).sha
    while sha:
        found.append(there.commits[sha].title)
        sha = there.commits[sha].parent
    return found[::-1]


def put(files: dict[str, bytes], repo_id: str = MODEL) -> str:
    """Commit files and return the hash."""
    api = HfApi()
    api.create_repo(repo_id, private=True, exist_ok=True)
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    return api.create_commit(repo_id, operations, commit_message="put").oid


def put_model(*shards: dict[str, Tensor], repo_id: str = MODEL) -> str:
    """Commit a model's weights in so many files and return the hash."""
    count = len(shards)
    names = ["model.safetensors"]
    if count > 1:
        names = [f"model-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    return put({name: save(part) for name, part in zip(names, shards, strict=True)}, repo_id)


def assert_published(published: PushedPrior, expected: ConsolidationPrior) -> None:
    """Load by the commit and by the tag, and compare bit by bit."""
    for revision in (published.commit, published.tag):
        loaded = ConsolidationPrior.from_pretrained(published.repo_id, revision=revision)
        assert loaded.fingerprint == expected.fingerprint
        assert str(loaded.source) == f"{published.repo_id}@{published.commit}"
        assert_equal_priors(loaded, expected)
