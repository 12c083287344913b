"""From raw files to a ready data set: examples with candidates, their counts and a card.

Of a corpus of your own, with an ontology of lines "id<TAB>name":

    python recipes/prepare.py --corpus pubtator --name mine --output_dir prepared/mine \\
        --files train=train.txt validation=dev.txt test=test.txt ontology=names.tsv
    python recipes/prepare.py --corpus clinical_notes --name notes --output_dir prepared/notes \\
        --files notes=notes.jsonl ontology=icd10cm.tsv --config on_error=count

Of a built-in task, from its files under their own licences:

    python recipes/prepare.py --task medmentions --data_dir data --output_dir prepared/medmentions

tier1.py and the others take the folder as --dataset, and so does datasets.load_dataset. With
--push_to_hub org/name it is pushed too, privately, unless a licence forbids it.
"""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import datasets

from hf_kfc import ranking
from hf_kfc.errors import DataError, HfKfcError
from hf_kfc.files import refuse_foreign
from hf_kfc.ranking.corpora.builder import COUNTS_FILE, CandidateRankingBuilder
from hf_kfc.ranking.dataset_card import Terms, counts_table
from hf_kfc.ranking.licenses import ONTOLOGY_LICENSES
from hf_kfc.ranking.push_dataset import push_to_hub, save_dataset
from hf_kfc.ranking.tasks import CORPORA, TASKS, prepare_task


@dataclass
class PrepareArguments:
    """What to prepare, from which files, and where to put it."""

    output_dir: str = field(metadata={"help": "Folder for the data set, its counts and its card."})
    name: str | None = field(
        default=None,
        metadata={"help": "What the data set is called (default: as the task or the corpus)."},
    )
    task: str | None = field(
        default=None, metadata={"help": f"A task whose files are known: {', '.join(TASKS)}."}
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder with the files of the tasks."}
    )
    corpus: str | None = field(
        default=None, metadata={"help": f"How to read files of your own: {', '.join(CORPORA)}."}
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
        default=None, metadata={"help": "Dataset repository to push to as well, as ORG/NAME."}
    )
    hub_private_repo: bool = field(
        default=True, metadata={"help": "Whether only its members may see the repository."}
    )
    ontology_license: str | None = field(
        default=None,
        metadata={
            "help": "Whose the names of concepts are, where the format of the ontology does not "
            f"tell: {', '.join(ONTOLOGY_LICENSES)}."
        },
    )
    redistribute: str | None = field(
        default=None,
        metadata={"help": "Why you may push what its licences forbid; the card tells it."},
    )

    def __post_init__(self) -> None:
        if (self.task is None) == (self.corpus is None):
            raise DataError("give either a task or a corpus, --task or --corpus with --files")
        if self.task is not None and self.files:
            raise DataError(f"task {self.task!r} has files of its own; leave files out")
        for what, name, known in (
            ("task", self.task, TASKS),
            ("corpus", self.corpus, CORPORA),
            ("ontology license", self.ontology_license, ONTOLOGY_LICENSES),
        ):
            if name is not None and name not in known:
                raise DataError(f"unknown {what} {name!r}; use one of {', '.join(known)}")
        self.name = self.name or self.task or self.corpus


def main() -> None:
    """Build a data set, print its counts, save it and, if asked to, push it."""
    (args,) = ranking.ScriptParser(PrepareArguments, description=__doc__).parse()
    refuse_foreign(Path(args.output_dir), f"{args.name}/{COUNTS_FILE}")  # only an older one goes
    if args.task is not None:
        config = read_config(args, TASKS[args.task].builder)
        options = {"data_dir": args.data_dir, "num_proc": args.num_proc}
        builder = prepare_task(args.task, **options, **config)
    else:
        corpus, files = CORPORA[args.corpus], {}
        for key, path in pairs("files", args.files or ()):
            files.setdefault(key, []).append(path)
        builder = corpus(data_files=files, **read_config(args, corpus))
        builder.download_and_prepare(num_proc=args.num_proc)
    print(counts_table(builder.counts))

    known = TASKS[args.task].ontology_license if args.task else None
    license_ = ONTOLOGY_LICENSES.get(args.ontology_license or known or "")
    terms = Terms.of(builder, license_, args.redistribute)
    if args.push_to_hub:
        terms.check(args.name)
    save_dataset(builder, args.output_dir, args.name, terms)
    print(f"saved in {args.output_dir}")
    if args.push_to_hub:
        private = args.hub_private_repo
        terms_given = {"ontology_license": license_, "redistribute": args.redistribute}
        commit = push_to_hub(builder, args.push_to_hub, args.name, private=private, **terms_given)
        print(f"pushed as {commit.commit_url}")


def read_config(
    args: PrepareArguments, builder_class: type[CandidateRankingBuilder]
) -> dict[str, Any]:
    """Read the settings; their types are checked here, and their ranges by the builder."""
    default = builder_class.BUILDER_CONFIG_CLASS()
    base = {own.name for own in fields(datasets.BuilderConfig)}
    known = [own.name for own in fields(default) if own.name not in base]
    config = {}
    for key, text in pairs("config", args.config or ()):
        if key not in known:
            name = args.task or args.corpus
            raise DataError(f"{name} has no setting {key!r}; use {', '.join(known)}")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        usual = getattr(default, key)
        if usual is not None and type(value) is not type(usual):
            raise DataError(f"config: {key} is {text!r}; give a value such as {usual!r}")
        config[key] = value
    return config


def pairs(name: str, texts: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Split texts of the form KEY=VALUE."""
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise DataError(f"{name}: {text!r} is not KEY=VALUE; correct it")
        yield key, value


if __name__ == "__main__":
    try:
        main()
    except HfKfcError as error:  # what is wrong with the input, in one line
        sys.exit(f"error: {error}")
