"""Pushing a model: a named list of its folder's files, in one commit, and its card."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import CommitOperation, CommitOperationAdd, CommitOperationDelete, HfApi

from ..errors import HubError
from ..text import printable
from .commit import RepositoryInfo, commit, holds, open_repository, siblings
from .failures import hub_errors_as

__all__ = ["MODEL_FILES", "PushedModel", "push_card", "push_model"]

logger = logging.getLogger(__name__)

_CARD = "README.md"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json")
_PRIOR = "prior*.safetensors"
_LONG = 500  # characters of a list of files

MODEL_FILES = (
    # weights, none of them pickled
    "model.safetensors",
    "model-*-of-*.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    # configuration
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "consolidation_config.json",
    # tokenizer
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    # results and pictures
    "results.json",
    "results.md",
    "*.png",
    "*.svg",
)
"""The files of a folder that :func:`push_model` pushes: nothing else in it leaves this machine."""


@dataclass(frozen=True)
class PushedModel:
    """Where a model was pushed, and which files of its folder.

    Args:
        repo_id: The repository.
        commit: Full hash of the commit that holds it.
        url: Its page.
        files: Names of the files that were pushed.
        left: Names of what else lies in the folder and was not.
    """

    repo_id: str
    commit: str
    url: str
    files: tuple[str, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.repo_id}@{self.commit}"


def push_model(
    folder: str | Path,
    repo_id: str,
    *,
    card: str,
    files: str | Sequence[str] = MODEL_FILES,
    private: bool = True,
    token: str | None = None,
) -> PushedModel:
    """Push a model's folder to a repository of its own, in one commit.

    Only files whose names are listed are pushed; what is left is told. If it fails, or the process
    is killed, call it again: what is done is not done twice. A repository that holds the very files
    is left as it is, its card included; :func:`push_card` replaces a card alone.

    Args:
        folder: What ``save_pretrained`` made, and what lies beside it.
        repo_id: The repository, ``"organisation/name"``; made if it is not there.
        card: Text of the README that goes with the files.
        files: Names or patterns of what to push, as ``"*.png"``; hidden files and folders never
            match.
        private: Whether only its members may see the repository.
        token: Access token; by default the one logged in with.

    Raises:
        HubError: The folder has no weights, the repository holds a prior or is not as private as
            asked, or the Hub refused or is out of reach; nothing is half pushed then.

    Example:
        >>> trainer.save_model("runs/tier1")  # doctest: +SKIP
        >>> pushed = push_model("runs/tier1", "me/tier1", card="# Tier 1")  # doctest: +SKIP
        >>> prior.push_to_hub("me/tier1-kfc", anchor=str(pushed))  # doctest: +SKIP
    """
    folder = Path(folder)
    chosen, left = _choose(folder, [files] if isinstance(files, str) else files)
    if left:
        names = printable(", ".join(left), _LONG)
        logger.warning("left in %s and not pushed: %s", printable(folder), names)

    def changes(head: RepositoryInfo) -> list[CommitOperation]:
        there = siblings(head)
        if any(fnmatchcase(name, _PRIOR) for name in there):
            raise HubError(f"{repo_id} holds a prior; give the model another repository")
        stale = [name for name in there if name not in chosen and _matches(name, _WEIGHTS)]
        if not stale and all(holds(there.get(name), own) for name, own in chosen.items()):
            return []
        return [
            *(CommitOperationDelete(name) for name in stale),
            *(CommitOperationAdd(name, own) for name, own in chosen.items()),
            CommitOperationAdd(_CARD, card.encode()),
        ]

    api = HfApi(token=token, library_name="hf_kfc")
    with hub_errors_as(
        f"{repo_id}: {folder} is not pushed, or without an answer ({{reason}}); try again, what "
        "was done is not done twice"
    ):
        open_repository(api, repo_id, private=private)
        sha = commit(api, repo_id, changes, message="Push the model").sha
    page = f"{api.endpoint}/{repo_id}/tree/{sha}"
    return PushedModel(repo_id, sha, page, tuple(chosen), left)


def push_card(
    repo_id: str,
    card: str,
    *,
    commit_message: str = "Replace the card",
    parent: str | None = None,
    token: str | None = None,
) -> str:
    """Replace the card of a repository, unless it says the same already.

    Args:
        repo_id: The repository.
        card: Text of the README.
        commit_message: Of the commit.
        parent: The commit whose files the card tells of; by default whichever is the last.
        token: Access token; by default the one logged in with.

    Returns:
        The commit that has the card, ``"org/name@sha"``.

    Raises:
        HubError: The repository has changed since ``parent``, or the Hub refused or is out of
            reach.
    """

    def changes(head: RepositoryInfo) -> list[CommitOperation]:
        there = siblings(head)
        if holds(there.get(_CARD), card.encode()):
            return []
        if parent not in (None, head.sha):
            raise HubError(
                f"{repo_id} has changed since {parent}, of which the card tells; run the same again"
            )
        return [CommitOperationAdd(_CARD, card.encode())]

    api = HfApi(token=token, library_name="hf_kfc")
    with hub_errors_as(
        f"{repo_id}: its card is not replaced, or without an answer ({{reason}}); try again"
    ):
        return f"{repo_id}@{commit(api, repo_id, changes, message=commit_message).sha}"


def _choose(folder: Path, patterns: Sequence[str]) -> tuple[dict[str, Path], tuple[str, ...]]:
    """Return the files to push by name, and the names of all else."""
    if not folder.is_dir():
        raise HubError(f"{folder} is no folder; give the one that save_pretrained made")
    chosen, left = dict[str, Path](), []
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith(".") and _matches(path.name, patterns):
            chosen[path.name] = path
        elif path.name != _CARD:
            left.append(path.name + "/" * path.is_dir())
    chosen.pop(_CARD, None)  # the card is given
    if not any(_matches(name, _WEIGHTS) for name in chosen):
        raise HubError(
            f"{folder} has no weights to push; save the model there as safetensors, or name its "
            "files with files=[...]"
        )
    return chosen, tuple(left)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
