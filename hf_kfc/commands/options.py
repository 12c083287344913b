"""What each command takes; a function's docstring is its command's help.

Nothing heavy is imported here, so that help and a wrong option are answered at once.
"""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import fields
from pathlib import Path

from ..curvature_arguments import CurvatureArguments

__all__ = ["COMMANDS", "DAMPING", "count", "curvature_arguments", "number"]

DAMPING = 0.1
"""The relative damping that conditions are told for: the trainer's default."""

UNSEEN = 10
"""In how many examples a token must stand for the curvature of a published prior to see it, and for
the prior to tell it."""


def estimate(parser: ArgumentParser) -> None:
    """Make the prior of a model that has just learnt a data set.

        hf-kfc estimate --model runs/tier1 --dataset org/reviews --output runs/tier1/prior
        hf-kfc estimate --model org/tagger --dataset notes.jsonl --label_column tags --output prior
        hf-kfc estimate --model org/llm --generate 2000 --push_to_hub org/llm-general

    For sequence and token classifiers, causal and encoder-decoder language models and, with
    hf_kfc[ranking], rankers of candidates. DATASET is a data set of the Hub, a folder that
    save_to_disk made, or a file or folder of CSV, JSON lines, Parquet or text; columns with usual
    names are found. An estimate that was killed goes on where it was when it is called again.

    With --generate nothing of what a causal language model was trained on is needed: it writes
    texts of its own, whose curvature is estimated and which the prior carries as probes. Public
    texts are better ones, if there are any of its kind: give them as DATASET, with --probes.
    """
    parser.add_argument("--model", required=True, help="The model, with its tokenizer.")
    learnt = parser.add_mutually_exclusive_group(required=True)
    learnt.add_argument("--dataset", help="What it has learnt.")
    learnt.add_argument(
        "--generate", metavar="N", type=count, help="How many texts it writes instead."
    )
    parser.add_argument(
        "--drop_repeats_of",
        metavar="DATASET",
        help="With --generate: texts of which the model may have memorised some; what it "
        "writes that has 13 tokens in a row with one of them is dropped, and counted.",
    )
    parser.add_argument(
        "--probes",
        metavar="N",
        type=count,
        help="Of how many examples the prior keeps what the model says, and the examples: of a "
        "DATASET that anyone may have.",
    )
    parser.add_argument(
        "--said_twice",
        action="store_true",
        help="Let each probe of a causal language model be the first half of a text, twice: so the "
        "model also keeps what is told by words far before.",
    )
    output = parser.add_mutually_exclusive_group(required=True)
    output.add_argument("--output", metavar="DIR", type=Path, help="The folder to write.")
    output.add_argument(
        "--push_to_hub",
        metavar="ORG/NAME",
        type=_repository,
        help="The repository to publish in, for its members only and, of a DATASET, without tokens "
        "of few examples; the whole prior is in the folder NAME.",
    )
    parser.add_argument("--config", help="Name of the data set's configuration.")
    parser.add_argument("--split", help="The part of it that is read (default: train).")
    parser.add_argument(
        "--text_columns", nargs="+", metavar="COLUMN", help="The text, or the two of a pair."
    )
    parser.add_argument("--label_column", metavar="COLUMN", help="What is predicted of it.")
    parser.add_argument(
        "--max_length", type=count, help="The most tokens of an example (of a text written: 128)."
    )
    parser.add_argument("--task", help="Name of the task (default: the data set's, or general).")
    parser.add_argument("--device", help="cpu, cuda:1, ... (default: an accelerator, if any).")
    from transformers import HfArgumentParser  # noqa: PLC0415 - takes half a second

    settings = HfArgumentParser([CurvatureArguments], add_help=False)  # type: ignore[list-item]
    for action in settings._actions:
        if action.dest == "min_token_examples":
            action.default = None
            action.help = f"{action.help} (default: {UNSEEN} with --push_to_hub and a --dataset)"
        parser._add_action(action)


def curvature_arguments(options: Namespace) -> CurvatureArguments:
    """Gather the options of an estimate that say how the curvature is estimated."""
    values = {field.name: getattr(options, field.name) for field in fields(CurvatureArguments)}
    if values["min_token_examples"] is None:
        leaves = options.push_to_hub and options.dataset
        values["min_token_examples"] = UNSEEN if leaves else 0
    return CurvatureArguments(**values)


def inspect(parser: ArgumentParser) -> None:
    """Show what a prior is: where it comes from, its layers, their sizes and eigenvalues.

        hf-kfc inspect runs/tier1/prior
        hf-kfc inspect org/tier1-kfc@v1 --json

    Sizes are those of the files. Eigenvalues are those of F as it is stored, undamped; the
    condition is that of F with the damping that the trainer adds by default. The error is that of
    merging and compressing, the most that F is off by in its Frobenius norm.
    """
    _prior(parser)


def verify(parser: ArgumentParser) -> None:
    """Make sure that a prior is whole and belongs to a model; list all that does not fit.

        hf-kfc verify runs/tier1/prior runs/tier1
        hf-kfc verify org/tier1-kfc@v1 org/tier1@v1

    MODEL is the one that the prior was made of: a later tier's has moved away from the anchor, and
    how far is told as a problem. The status is 1 if there is one.
    """
    _prior(parser)
    parser.add_argument("model", metavar="MODEL", help="Folder or repository of its model.")


def diff(parser: ArgumentParser) -> None:
    """Show how two priors differ: provenance, layers, curvature and anchors.

        hf-kfc diff runs/tier1/prior runs/tier2/prior
        hf-kfc diff org/tier1-kfc@v1 org/tier1-kfc@v2 --json

    Differences are relative to A: of curvatures in the Frobenius norm of F, whatever their kinds.
    Embeddings are compared on the tokens that both cover.
    """
    parser.add_argument("a", metavar="A", help="Folder or repository of a prior.")
    parser.add_argument("b", metavar="B", help="The one to hold against it.")


def audit(parser: ArgumentParser) -> None:
    """Show what a prior tells of the data it was estimated on.

        hf-kfc audit runs/tier1/prior --tokenizer runs/tier1
        hf-kfc audit org/tier1-kfc --base google-bert/bert-base-uncased
        hf-kfc audit org/tier1-kfc --model org/tier1 --members train --non_members test
        hf-kfc audit org/tier1-kfc@v2 --earlier org/tier1-kfc@v1 --added new --model org/tier1 \\
            --members train --non_members test

    First, the tokens that could be read off it. Second, with --model, --members and --non_members,
    a membership test: how well examples that the prior was estimated on are told from others, and
    how well their rare tokens are told from tokens that none of them has, by what the first linear
    layer's A spans, and how well tokens, lengths and labels are ranked by frequency. Third, with
    --earlier and --added, what two revisions tell of the examples between them. They are folders or
    files as estimate takes them, or encoded examples that save_to_disk wrote.
    """
    _prior(parser)
    parser.add_argument(
        "--base", metavar="MODEL", help="The model that training began from: shows moved rows."
    )
    parser.add_argument("--tokenizer", metavar="MODEL", help="Its tokenizer spells the tokens.")
    parser.add_argument("--model", metavar="MODEL", help="The prior's model, to test examples.")
    parser.add_argument("--members", metavar="DATASET", help="What the prior was estimated on.")
    parser.add_argument("--non_members", metavar="DATASET", help="Like examples that it was not.")
    parser.add_argument("--earlier", metavar="PRIOR", help="An older revision, to hold against it.")
    parser.add_argument("--added", metavar="DATASET", help="Members that the older one has not.")
    parser.add_argument("--max_length", type=count, help="The most tokens of an example.")


def merge(parser: ArgumentParser) -> None:
    """Merge priors into one, whose penalty costs less than theirs together; tell the error.

        hf-kfc merge runs/tier1/prior runs/tier2/prior --rank 1 --output runs/merged
        hf-kfc merge org/a-kfc org/b-kfc@v1 runs/c/prior --weights 1 1 2 --output merged

    Every layer keeps the nearest sum of --rank Kronecker products; up to that many priors it is
    exact.
    """
    parser.add_argument(
        "priors", metavar="PRIOR", nargs="+", help="Folders or repositories of the priors."
    )
    parser.add_argument(
        "--output", metavar="DIR", type=Path, required=True, help="The folder to write."
    )
    parser.add_argument("--rank", type=int, default=4, help="The most products a layer keeps.")
    parser.add_argument(
        "--weights",
        type=float,
        nargs="+",
        metavar="W",
        help="One for each prior (default: its share of the training examples).",
    )
    parser.add_argument(
        "--damping", type=float, default=DAMPING, help="What the prior will be used with."
    )


def compress(parser: ArgumentParser) -> None:
    """Write a prior in fewer bytes: factors of low rank, half precision; tell the error.

        hf-kfc compress runs/tier1/prior --rank 64 --dtype bfloat16 --output runs/tier1/small
        hf-kfc compress org/tier1-kfc@v1 --dtype bfloat16 --output small

    The anchor stays as it is. With --rank a factor keeps its largest eigenpairs and its diagonal.
    """
    _prior(parser)
    parser.add_argument(
        "--output", metavar="DIR", type=Path, required=True, help="The folder to write."
    )
    parser.add_argument(
        "--rank", type=int, help="Eigenpairs kept of each Kronecker factor (default: all)."
    )
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float32"),
        help="How the curvature is stored (default: as it is).",
    )


def export(parser: ArgumentParser) -> None:
    """Write what other libraries take of a prior: the covariances of PEFT's CorDA.

        hf-kfc export runs/tier1/prior --format corda --output covariances.pt

    CordaConfig(covariance_file="covariances.pt") then needs no data for LoRA adapters that keep,
    or use, the directions of the old task's inputs.
    """
    _prior(parser)
    parser.add_argument("--format", choices=("corda",), required=True, help="Who is to read it.")
    parser.add_argument(
        "--output", metavar="FILE", type=Path, required=True, help="The file to write."
    )


def push(parser: ArgumentParser) -> None:
    """Publish a prior in a repository of its own, for its members only.

        hf-kfc push runs/tier1/prior org/tier1-kfc
        hf-kfc push llm-general-small org/llm-general --anchor org/llm@HASH

    It is published without tokens of few examples, in one commit with a tag. With --anchor the
    model's parameters are pointed at and not stored again: of a compressed prior they are most.
    Called again after a failure it does nothing twice.
    """
    _prior(parser)
    parser.add_argument(
        "repository", metavar="ORG/NAME", type=_repository, help="The repository to publish in."
    )
    parser.add_argument(
        "--anchor",
        metavar="ORG/MODEL@HASH",
        help="The model that the prior was made of, where it is published, by the whole hash of a "
        "commit.",
    )
    parser.add_argument(
        "--min_examples",
        metavar="N",
        type=number,
        default=UNSEEN,
        help="In how many examples a token must stand to be published; 0, as for texts that the "
        "model wrote itself, publishes all that the prior tells.",
    )


COMMANDS = {
    estimate: ".estimate:report",
    inspect: ".inspect:report",
    verify: ".verify:report",
    diff: ".diff:report",
    audit: ".audit:report",
    merge: ".derived:merge",
    compress: ".derived:compress",
    export: ".derived:export",
    push: ".push:report",
}
"""Each command with the module and the function that runs it."""


def number(text: str) -> int:
    """Read an option that is 0 or more."""
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is no whole number; give 0 or more")
    return int(text)


def count(text: str) -> int:
    """Read an option that is 1 or more."""
    if not text.isdecimal() or not int(text):
        raise ArgumentTypeError(f"{text!r} is no number of one or more")
    return int(text)


def _repository(name: str) -> str:
    organisation, _, rest = name.partition("/")
    if not (organisation and rest) or "/" in rest:
        raise ArgumentTypeError(f"{name!r} is no repository; give ORG/NAME")
    return name


def _prior(parser: ArgumentParser) -> None:
    parser.add_argument("prior", metavar="PRIOR", help="Folder or repository of the prior.")
