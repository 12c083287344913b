"""The card of a pushed data set: what it holds, whence, on what terms, and how it was made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard

from ..cards import metadata_of, render, with_section
from ..errors import DataError, HfKfcError
from .corpora.builder import CandidateRankingBuilder
from .corpora.counts import Counts, SplitCounts
from .licenses import ONTOLOGY_LICENSES, License
from .schema import FEATURES

__all__ = ["Terms", "counts_table", "dataset_card"]

_SHOWN_RECALLS = (1, 5, 10, 25)


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a set is pushed.

    Args:
        text: Licence of the corpus; ``None`` if it is not known.
        names: Licence of the ontology, whose names the candidates show; ``None`` likewise.
        redistribute: Why the set may be pushed all the same where these do not allow it.
    """

    text: License | None
    names: License | None
    redistribute: str | None = None

    @classmethod
    def of(
        cls,
        builder: CandidateRankingBuilder,
        ontology_license: License | None = None,
        redistribute: str | None = None,
    ) -> Terms:
        """Find the terms of a built set; the licence of its ontology by default by its format."""
        # A corpus that reads no file of an ontology has its names from its text.
        own_names = "ontology" not in (builder.config.data_files or {})
        known = ONTOLOGY_LICENSES.get(builder.config.ontology_format)
        names = builder.LICENSE if own_names else ontology_license or known
        return cls(builder.LICENSE, names, (redistribute or "").strip() or None)

    def check(self, name: str) -> None:
        """Refuse to push a set if a licence forbids it or is not known, and no reason is given."""
        if self.redistribute:
            return
        for what, license_ in (("text", self.text), ("concept names", self.names)):
            if license_ is None or not license_.redistributable:
                why = "is not known" if license_ is None else f"({license_.name}) forbids it"
                raise DataError(
                    f"{name}: not pushed, the licence of its {what} {why}; if you have the "
                    "right to pass it on, say why by 'redistribute'"
                )


def dataset_card(
    builder: CandidateRankingBuilder,
    config_name: str,
    terms: Terms,
    repository: str,
    existing: str | None = None,
) -> str:
    """Write the card of a built set, or add it as a configuration to the card that is there."""
    new = render("dataset_card.md", repository=repository, config_name=config_name)
    try:
        metadata_of(existing or new)  # refuses what the client's reader would never end with
    except HfKfcError as error:
        raise DataError(f"the card of {repository} is damaged ({error}); mend it") from error
    card = DatasetCard(existing or new, ignore_metadata_errors=True)
    section = render(
        "dataset_corpus.md",
        config_name=config_name,
        description=" ".join((type(builder).__doc__ or "").split("\n\n")[0].split()),
        text=_told(terms.text),
        names=_told(terms.names),
        redistribute=terms.redistribute,
        sources=list(_sources(builder)),
        counts=builder.counts,
        table=counts_table(builder.counts),
        version=version("hf_kfc"),
        code=_code(builder),
    )
    card.text = with_section(card.text, config_name, section)
    _update_metadata(card.data, builder, config_name, terms)
    return str(card)


def counts_table(counts: Counts) -> str:
    """Lay the counts of the splits out as a Markdown table; what is zero everywhere is left out."""
    lines = [f"| | {' | '.join(counts.splits)} |", f"|---{'|---:' * len(counts.splits)}|"]
    for row, values in _rows(list(counts.splits.values()), counts.num_candidates):
        if any(value or isinstance(value, float) for value in values):
            cells = [f"{own:.3f}" if isinstance(own, float) else f"{own:,}" for own in values]
            lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _rows(splits: list[SplitCounts], k: int) -> Iterator[tuple[str, Sequence[float]]]:
    yield "mentions read", [own.read for own in splits]
    yield "linked to one concept", [own.linked for own in splits]
    yield "of them, to a concept with a name", [own.named for own in splits]
    yield "**kept as examples**", [own.kept for own in splits]
    yield "not drawn (`max_examples`)", [own.not_drawn for own in splits]
    for kind, numbers in (
        ("dropped", [own.dropped for own in splits]),
        ("malformed", [own.malformed for own in splits]),
        ("remark", [own.remarks for own in splits]),
    ):
        for reason in dict.fromkeys(chain.from_iterable(numbers)):
            yield f"{kind}: {reason}", [own.get(reason, 0) for own in numbers]
    for rank in (*(rank for rank in _SHOWN_RECALLS if rank < k), k):
        yield f"recall@{rank} of retrieval, of the kept", [own.recall(rank) for own in splits]
    yield f"recall@{k} of retrieval, of the linked", [own.recall_of_linked() for own in splits]
    yield "random candidates", [own.filled for own in splits]
    yield "with candidates of one name", [own.same_name for own in splits]
    yield "of them, with the gold among these", [own.gold_same_name for own in splits]


def _told(license_: License | None) -> str:
    if license_ is None:
        return "licence not known"
    cited = f"; cite {license_.citation}" if license_.citation else ""
    return f"[{license_.name}]({license_.url}){cited}"


def _sources(builder: CandidateRankingBuilder) -> Iterator[dict[str, str]]:
    """Name the files without their folders, which are nobody's business, and hash them."""
    for key, paths in sorted((builder.config.data_files or {}).items()):
        names = [f"`{Path(path).name}`" for path in paths[:3]]
        more = [f"and {len(paths) - len(names)} more"] if len(paths) > len(names) else []
        digest = hashlib.sha256()
        for path in paths:
            if "://" in str(path):
                digest.update(str(path).encode())
                continue
            with Path(path).open("rb") as file:
                while chunk := file.read(2**20):
                    digest.update(chunk)
        yield {"key": key, "files": ", ".join([*names, *more]), "sha256": digest.hexdigest()}


def _code(builder: CandidateRankingBuilder) -> str:
    """Write the code that builds the same set."""
    builder_class, config = type(builder), builder.config
    arguments: dict[str, Any] = {}
    if config.name != "default":
        arguments["config_name"] = config.name
    if config.data_files:
        arguments["data_files"] = {
            key: Path(paths[0]).name if len(paths) == 1 else [Path(path).name for path in paths[:3]]
            for key, paths in config.data_files.items()
        }
    base = {field.name for field in fields(datasets.BuilderConfig)}
    default = builder_class.BUILDER_CONFIG_CLASS()
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name not in base and value != getattr(default, field.name):
            arguments[field.name] = value
    lines = [f"    {name}={value!r}," for name, value in arguments.items()]
    return "\n".join(
        [
            f"from {builder_class.__module__} import {builder_class.__qualname__}",
            "",
            f"builder = {builder_class.__qualname__}(",
            *lines,
            ")",
            "builder.download_and_prepare()",
            "data = builder.as_dataset()",
        ]
    )


def _update_metadata(
    data: Any, builder: CandidateRankingBuilder, config_name: str, terms: Terms
) -> None:
    """Merge the metadata of one configuration into a card's, as `datasets` does."""
    splits = builder.info.splits
    files = [{"split": split, "path": f"{config_name}/{split}.parquet"} for split in splits]
    MetadataConfigs({config_name: {"data_files": files}}).to_dataset_card_data(data)
    size = sum(split.num_bytes for split in splits.values())
    info = datasets.DatasetInfo(features=FEATURES, splits=splits, dataset_size=size)
    DatasetInfosDict({config_name: info}).to_dataset_card_data(data)
    data["license"] = _license_id(data.get("license"), terms)


def _license_id(existing: str | list[str] | None, terms: Terms) -> str:
    """The Hub's identifier of all licences in a repository, if they are one."""
    ids = {existing} if isinstance(existing, str) else set(existing or [])
    for license_ in (terms.text, terms.names):
        ids.add(license_.id if license_ else "other")
    return ids.pop() if len(ids) == 1 else "other"
