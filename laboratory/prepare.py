"""From raw files to a ready data set: what ``recipes/prepare.py`` calls."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import datasets

from hf_kfc.errors import DataError
from hf_kfc.files import refuse_foreign
from hf_kfc.ranking.corpora.bc5cdr import Bc5cdr
from hf_kfc.ranking.corpora.builder import COUNTS_FILE, CandidateRankingBuilder
from hf_kfc.ranking.corpora.cadec import Cadec
from hf_kfc.ranking.corpora.clinical_notes import ClinicalNotes
from hf_kfc.ranking.corpora.codiesp import CodiEsp
from hf_kfc.ranking.corpora.medmentions import MedMentions, MedMentionsLines
from hf_kfc.ranking.corpora.mednorm import MedNorm
from hf_kfc.ranking.corpora.psytar import PsyTar
from hf_kfc.ranking.corpora.pubtator import Pubtator
from hf_kfc.ranking.corpora.tac_adr import TacAdr
from hf_kfc.ranking.corpora.twimed import TwiMed
from hf_kfc.ranking.dataset_card import Terms, counts_table
from hf_kfc.ranking.licenses import ONTOLOGY_LICENSES
from hf_kfc.ranking.publishing import push_to_hub, save_dataset
from hf_kfc.ranking.tasks import TASKS, prepare_task

__all__ = ["CORPORA", "PrepareArguments", "run_prepare"]

CORPORA: Mapping[str, type[CandidateRankingBuilder]] = {
    "bc5cdr": Bc5cdr,
    "cadec": Cadec,
    "clinical_notes": ClinicalNotes,
    "codiesp": CodiEsp,
    "mednorm": MedNorm,
    "medmentions": MedMentions,
    "medmentions_lines": MedMentionsLines,
    "psytar": PsyTar,
    "pubtator": Pubtator,
    "tac_adr": TacAdr,
    "twimed": TwiMed,
}
"""The builders by the name of the corpus or format that they read."""


@dataclass
class PrepareArguments:
    """What to prepare, from which files, and where to put it."""

    output_dir: str = field(metadata={"help": "Folder for the data set, its counts and its card."})
    task: str | None = field(
        default=None, metadata={"help": f"A task whose files are known: {', '.join(TASKS)}."}
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder with the files of the tasks."}
    )
    corpus: str | None = field(
        default=None,
        metadata={"help": f"How to read files of your own: {', '.join(CORPORA)}."},
    )
    files: list[str] | None = field(
        default=None,
        metadata={
            "help": "Those files, as KEY=PATH, for example train=a.txt test=b.txt ontology=c.tsv; "
            "several of one key are read together."
        },
    )
    config: list[str] | None = field(
        default=None,
        metadata={
            "help": "Settings as KEY=VALUE, for example num_candidates=25 on_error=count; a value "
            "that is JSON is read as such."
        },
    )
    num_proc: int | None = field(
        default=None, metadata={"help": "Processes that look for candidates (default: one)."}
    )
    push_to_hub: str | None = field(
        default=None, metadata={"help": "Dataset repository to publish in too, as ORG/NAME."}
    )
    public: bool = field(default=False, metadata={"help": "Publish it for everyone to see."})
    ontology_license: str | None = field(
        default=None,
        metadata={
            "help": "Whose the names of concepts are, where the format of the ontology does not "
            f"tell: {', '.join(ONTOLOGY_LICENSES)}."
        },
    )
    redistribute: str | None = field(
        default=None,
        metadata={"help": "Why you may publish what its licences forbid; the card tells it."},
    )

    def __post_init__(self) -> None:
        if (self.task is None) == (self.corpus is None):
            raise DataError("give either a task or a corpus, --task or --corpus with --files")
        if self.corpus is not None and self.corpus not in CORPORA:
            raise DataError(f"unknown corpus {self.corpus!r}; use one of {', '.join(CORPORA)}")
        if self.task is not None and self.files:
            raise DataError(f"task {self.task!r} has files of its own; leave files out")
        if self.ontology_license is not None and self.ontology_license not in ONTOLOGY_LICENSES:
            raise DataError(
                f"unknown ontology license {self.ontology_license!r}; use one of "
                f"{', '.join(ONTOLOGY_LICENSES)}"
            )

    @property
    def name(self) -> str:
        """What the configuration of the data set is called."""
        return self.task or self.corpus or ""


def run_prepare(arguments: PrepareArguments) -> None:
    """Build a data set, print its counts, save it and, if asked to, publish it.

    Args:
        arguments: What to do.

    Raises:
        HfKfcError: Something is missing, malformed or not allowed; the folder is whole then, or
            as it was.
    """
    output = Path(arguments.output_dir)
    refuse_foreign(output, f"{arguments.name}/{COUNTS_FILE}")
    builder = _build(arguments)
    print(counts_table(builder.counts))  # noqa: T201
    known = TASKS[arguments.task].ontology_license if arguments.task else None
    license_ = ONTOLOGY_LICENSES.get(arguments.ontology_license or known or "")
    terms = Terms.of(builder, license_, arguments.redistribute)
    if arguments.push_to_hub:
        terms.check(arguments.name)
    save_dataset(builder, output, arguments.name, terms)
    print(f"saved in {output}")  # noqa: T201
    if arguments.push_to_hub:
        commit = push_to_hub(
            builder,
            arguments.push_to_hub,
            arguments.name,
            ontology_license=license_,
            redistribute=arguments.redistribute,
            private=not arguments.public,
        )
        print(f"published at {commit.commit_url}")  # noqa: T201


def _build(arguments: PrepareArguments) -> CandidateRankingBuilder:
    if arguments.task is not None:
        task = TASKS.get(arguments.task)
        config = _config(arguments, task.builder) if task else {}
        return prepare_task(
            arguments.task, data_dir=arguments.data_dir, num_proc=arguments.num_proc, **config
        )
    builder_class = CORPORA[arguments.name]
    files: dict[str, list[str]] = {}
    for key, path in _pairs("files", arguments.files or ()):
        files.setdefault(key, []).append(path)
    builder = builder_class(data_files=files, **_config(arguments, builder_class))
    builder.download_and_prepare(num_proc=arguments.num_proc)
    return builder


def _config(
    arguments: PrepareArguments, builder_class: type[CandidateRankingBuilder]
) -> dict[str, Any]:
    """Read the settings; their values are checked for type here and for range by the builder."""
    default = builder_class.BUILDER_CONFIG_CLASS()
    base = {own.name for own in fields(datasets.BuilderConfig)}
    known = [own.name for own in fields(default) if own.name not in base]
    config = {}
    for key, text in _pairs("config", arguments.config or ()):
        if key not in known:
            raise DataError(f"{arguments.name} has no setting {key!r}; use {', '.join(known)}")
        value, usual = _value(text), getattr(default, key)
        if usual is not None and type(value) is not type(usual):
            raise DataError(f"config: {key} is {text!r}; give a value such as {usual!r}")
        config[key] = value
    return config


def _pairs(name: str, texts: Iterable[str]) -> Iterable[tuple[str, str]]:
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise DataError(f"{name}: {text!r} is not KEY=VALUE; correct it")
        yield key, value


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
