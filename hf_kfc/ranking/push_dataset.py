"""Writing built sets to folders and to the Hub, where `datasets` loads them by itself."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    CommitOperation,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
)
from huggingface_hub.errors import EntryNotFoundError

from ..errors import DataError
from ..files import refuse_foreign, replace_directory, scratch_directory
from ..hub import commit, hub_errors_as, open_repository
from ..hub.commit import RepositoryInfo
from .corpora.builder import COUNTS_FILE, CandidateRankingBuilder
from .dataset_card import Terms, dataset_card
from .licenses import License

__all__ = ["push_to_hub", "save_dataset"]


_CARD = "README.md"


def save_dataset(
    builder: CandidateRankingBuilder,
    directory: str | Path,
    config_name: str,
    terms: Terms | None = None,
) -> None:
    """Write a built set as `datasets` loads it: ``load_dataset(directory, config_name)``.

    The folder gets a parquet file for each split and the counts, under the configuration's name,
    and a card. It is put in place when all is written.

    Args:
        builder: The prepared corpus.
        directory: The folder to make, or an older set of the same configuration to replace.
        config_name: The name of the configuration.
        terms: What the card says of licences; by default what the builder knows.

    Raises:
        HfKfcError: The name cannot be one of a folder, or ``directory`` holds something else or
            cannot be made.
    """
    _check_name(config_name)
    directory = Path(directory)
    refuse_foreign(directory, f"{config_name}/{COUNTS_FILE}")
    card = dataset_card(builder, config_name, terms or Terms.of(builder), directory.name)
    with replace_directory(directory) as partial:
        _write_files(builder, partial / config_name)
        (partial / _CARD).write_text(card, encoding="utf-8")


def push_to_hub(
    builder: CandidateRankingBuilder,
    repo_id: str,
    config_name: str,
    *,
    ontology_license: License | None = None,
    redistribute: str | None = None,
    private: bool = True,
    token: str | None = None,
    endpoint: str | None = None,
) -> CommitInfo:
    """Push a built set to a dataset repository, in one commit.

    A repository may hold several corpora, each as a configuration of its own: what the others and
    the card's own words say stays as it is. Where somebody commits at the same time, the commit is
    made anew on top of theirs.

    Args:
        builder: The prepared corpus.
        repo_id: The repository, ``"organisation/name"``; made if it is not there.
        config_name: The name of the configuration; an older one of the name is replaced.
        ontology_license: Licence of the file ``ontology``, where its format does not tell.
        redistribute: Why you may push what the licences forbid, or what has none that is
            known; the card tells it.
        private: Whether only its members may see the repository.
        token: Access token; by default the one logged in with.
        endpoint: Address of the Hub.

    Returns:
        The commit: ``commit_url``, and its hash as ``oid``.

    Raises:
        DataError: A licence forbids it, or the Hub refused or could not be reached; nothing is
            half pushed then.
        HubError: The repository is there and not as private as asked.

    Example:
        >>> builder = prepare_task("notes")  # doctest: +SKIP
        >>> push_to_hub(builder, "me/ranking", "notes").commit_url  # doctest: +SKIP
    """
    _check_name(config_name)
    terms = Terms.of(builder, ontology_license, redistribute)
    terms.check(config_name)
    api = HfApi(endpoint=endpoint, token=token, library_name="hf_kfc")
    with scratch_directory() as folder:
        _write_files(builder, folder / config_name)
        with hub_errors_as(
            f"{repo_id}: not pushed, or without an answer ({{reason}}); try again, what was "
            "uploaded is not sent twice",
            DataError,
        ):
            open_repository(api, repo_id, repo_type="dataset", private=private)
            return _commit(api, repo_id, builder, config_name, terms, folder)


def _check_name(config_name: str) -> None:
    # "data" is the folder of a configuration that has no name.
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", config_name) or config_name == "data":
        raise DataError(
            f"config_name is {config_name!r}; give letters, digits, '_', '-', '.', and not 'data'"
        )


def _write_files(builder: CandidateRankingBuilder, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, examples in builder.as_dataset().items():
        examples.to_parquet(folder / f"{split}.parquet")
    builder.counts.save(folder / COUNTS_FILE)


def _commit(
    api: HfApi,
    repo_id: str,
    builder: CandidateRankingBuilder,
    config_name: str,
    terms: Terms,
    folder: Path,
) -> CommitInfo:
    """Commit on top of what is there, as often as others are faster."""

    def changes(head: RepositoryInfo) -> list[CommitOperation]:
        sha = str(head.sha)
        card = dataset_card(builder, config_name, terms, repo_id, _read_card(api, repo_id, sha))
        there = [file.rfilename for file in head.siblings or []]
        return [
            *_changes(there, config_name, folder),
            CommitOperationAdd(_CARD, card.encode()),
        ]

    message = f"Push {config_name}"
    made = commit(api, repo_id, changes, message=message, repo_type="dataset").made
    assert made is not None  # the card alone is a change
    return made


def _changes(there: Sequence[str], config_name: str, folder: Path) -> Iterator[CommitOperation]:
    """Replace what the repository has under the configuration's name."""
    new = {f"{config_name}/{path.name}": path for path in sorted((folder / config_name).iterdir())}
    for old in there:
        if old.startswith(f"{config_name}/") and old not in new:
            yield CommitOperationDelete(old)
    for name, path in new.items():
        yield CommitOperationAdd(name, path)


def _read_card(api: HfApi, repo_id: str, head: str) -> str | None:
    try:
        card = api.hf_hub_download(repo_id, _CARD, repo_type="dataset", revision=head)
    except EntryNotFoundError:
        return None
    return Path(card).read_text(encoding="utf-8")
