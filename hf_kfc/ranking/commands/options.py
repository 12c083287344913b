"""What each command of linking takes; a function's docstring is its command's help.

The command line loads this file alone, without the package that it is in and what that imports, so
that help and a wrong option are answered at once.
"""

from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

from ...commands.options import count, number

__all__ = ["COMMANDS"]

FORMATS = ("jsonl", "pubtator", "brat")


def link(parser: ArgumentParser) -> None:
    """Link the mentions marked in documents to the concepts of an ontology.

        hf-kfc link notes.jsonl --model org/diseases --output linked.jsonl
        hf-kfc link notes.jsonl --model runs/tier2 --ontology names.tsv --output linked.jsonl
        hf-kfc link corpus.PubTator.txt --model runs/linker --output linked.pubtator

    NOTES is JSON lines, {"id": ..., "text": ..., "spans": [{"start": ..., "end": ...}]}, a file in
    PubTator format or a folder of brat's; the suffix tells which. The same documents are written,
    their mentions linked, in the format that the suffix of --output tells: all of them or none.
    JSON lines also hold names, probabilities and candidates, which score makes use of.
    """
    parser.add_argument("notes", metavar="NOTES", type=_there, help="The documents to link.")
    parser.add_argument(
        "--output", metavar="FILE", type=_writable, required=True, help="Where to write them."
    )
    parser.add_argument("--model", required=True, help="A linker, or a ranker with --ontology.")
    _linker(parser)
    parser.add_argument(
        "--output_format", choices=FORMATS, help="Of --output (default: its suffix tells)."
    )
    _format(parser, "NOTES")


def score(parser: ArgumentParser) -> None:
    """Measure how good linked documents are, and show it as a table, as JSON or as a page.

        hf-kfc score linked.jsonl gold.jsonl --html scores.html
        hf-kfc score linked.jsonl gold.PubTator.txt --train train.PubTator.txt --json

    Accuracy, recall of retrieval, mean reciprocal rank, no concept, calibration error, each with a
    95 % interval that draws documents; accuracy by type and, with --train, by mentions of the
    concept in training; and which concept was taken for which.
    """
    parser.add_argument("predictions", metavar="PREDICTIONS", type=_there, help="As link wrote.")
    parser.add_argument("gold", metavar="GOLD", type=_there, help="The right answers.")
    parser.add_argument(
        "--train", metavar="FILE", nargs="+", type=_there, default=[], help="Training documents."
    )
    parser.add_argument(
        "--ontology",
        metavar="FILE",
        type=_there,
        help="Makes other identifiers of a concept lead to its main one.",
    )
    parser.add_argument("--ontology_format", metavar="NAME", help="Of --ontology.")
    _measured(parser)
    _format(parser, "PREDICTIONS, GOLD and --train")


def regressions(parser: ArgumentParser) -> None:
    """Show which mentions were right with the old model and are wrong with the new one, and back.

        hf-kfc regressions runs/tier1 runs/tier2 gold.jsonl --ontology names.tsv --html changed.html
        hf-kfc regressions linked-before.jsonl linked-after.jsonl gold.jsonl

    OLD and NEW are linkers, rankers with --ontology, or files that link wrote. By type and by
    concept, the flips in their context, and McNemar's exact test of how uneven they are.
    """
    parser.add_argument(
        "old", metavar="OLD", type=_said, help="The linker before, or what it wrote."
    )
    parser.add_argument(
        "new", metavar="NEW", type=_said, help="The linker after, or what it wrote."
    )
    parser.add_argument("gold", metavar="GOLD", type=_there, help="The right answers.")
    _linker(parser)
    _measured(parser)
    _format(parser, "GOLD, and OLD and NEW if they are files")


COMMANDS = {
    link: "hf_kfc.ranking.commands.linking:link",
    score: "hf_kfc.ranking.commands.scoring:score",
    regressions: "hf_kfc.ranking.commands.scoring:regressions",
}
"""Each command with the module and the function that runs it."""


def _linker(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--ontology", metavar="FILE", type=_there, help="The concepts (default: the linker's own)."
    )
    parser.add_argument("--ontology_format", metavar="NAME", help="Of --ontology.")
    parser.add_argument(
        "--names_from",
        metavar="FILE",
        nargs="+",
        type=_there,
        default=[],
        help="Training documents: the words of their mentions are names of the concepts too.",
    )
    parser.add_argument(
        "--retrieval",
        choices=("bm25", "tfidf"),
        help="How candidates are found, as for the ranker's examples (default: the linker's own).",
    )
    parser.add_argument(
        "--development",
        metavar="FILE",
        nargs="+",
        type=_there,
        default=[],
        help="Documents with known concepts, not those learnt: they set the weight of retrieval, "
        "the temperature and the threshold.",
    )
    parser.add_argument(
        "--batch_size",
        type=count,
        help="Mentions ranked at once (default: what suits a processor; a GPU takes more).",
    )
    parser.add_argument("--num_proc", type=count, help="Processes that look for candidates.")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="Of the weights."
    )


def _measured(parser: ArgumentParser) -> None:
    parser.add_argument("--html", metavar="FILE", type=_writable, help="A page to write.")
    parser.add_argument("--resamples", type=count, default=1000, help="Of the bootstrap.")
    parser.add_argument("--seed", type=number, default=0, help="Of its random numbers.")


def _format(parser: ArgumentParser, what: str) -> None:
    parser.add_argument("--format", choices=FORMATS, help=f"Of {what} (default: suffixes tell).")


def _there(name: str) -> Path:
    if not Path(name).exists():
        raise ArgumentTypeError(f"{name} does not exist; correct the path")
    return Path(name)


def _said(name: str) -> str:
    """A linker may be a repository's name; what is called like a file is one."""
    if Path(name).suffix in (".gz", ".json", ".jsonl", ".pubtator", ".txt"):
        _there(name)
    return name


def _writable(name: str) -> Path:
    folder = next(path for path in Path(name).absolute().parents if path.exists())
    if not folder.is_dir():
        raise ArgumentTypeError(f"{name} cannot be written: {folder} is no folder")
    return Path(name)
