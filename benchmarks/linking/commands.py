"""What the guide's three commands give, as numbers to keep.

    accelerate launch recipes/tier1.py --dataset bc5cdr --data_dir data --num_train_epochs 3 \
        --output_dir runs/bc5cdr
    hf-kfc link data/bc5cdr/test_corpus.pubtator.txt.gz --model runs/bc5cdr \
        --ontology data/bc5cdr/mesh_names.tsv.gz \
        --names_from data/bc5cdr/train_corpus.pubtator.txt.gz \
        --development data/bc5cdr/dev_corpus.pubtator.txt.gz --output linked.jsonl
    python benchmarks/linking/commands.py --data_dir data --task bc5cdr --linked linked.jsonl

and on MedMentions

    accelerate launch recipes/tier1.py --dataset medmentions --data_dir data \
        --max_train_examples 20000 --max_test_examples 2000 --num_train_epochs 3 \
        --output_dir runs/medmentions
    hf-kfc link data/medmentions_st21pv/test.jsonl.gz --model runs/medmentions \
        --ontology data/ontologies/cui_names_strict.tsv.gz \
        --names_from data/medmentions_st21pv/train.jsonl.gz \
        --development data/medmentions_st21pv/dev_mentions_nocontext.jsonl.gz \
        --output linked.jsonl
    python benchmarks/linking/commands.py --data_dir data --task medmentions --linked linked.jsonl

Writes ``medmentions.json`` or ``bc5cdr_commands.json`` beside this file: what ``hf-kfc score`` says
of ``linked.jsonl``, and the same of the mentions whose concept has a name, which are all that a
linker could find; the others are those of which it should say that there is no concept.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_kfc.ranking import Answers, answers_of_documents, concept_counts, score_answers
from hf_kfc.ranking.formats.files import read_documents
from hf_kfc.ranking.ontologies import Ontology, read_ontology

FILES = {  # result, documents learnt, gold, names
    "medmentions": (
        "medmentions.json",
        "medmentions_st21pv/train.jsonl.gz",
        "medmentions_st21pv/test.jsonl.gz",
        "ontologies/cui_names_strict.tsv.gz",
    ),
    "bc5cdr": (
        "bc5cdr_commands.json",
        "bc5cdr/train_corpus.pubtator.txt.gz",
        "bc5cdr/test_corpus.pubtator.txt.gz",
        "bc5cdr/mesh_names.tsv.gz",
    ),
}


def shares(values: dict[str, Any]) -> dict[str, Any]:
    """The estimates of a report, to four digits."""
    return {
        name: {key: round(own[key], 4) for key in ("value", "low", "high")}
        | {"of": own["mentions"]}
        for name, own in values.items()
        if own["value"] is not None
    }


def main() -> None:
    """Score and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--task", choices=FILES, required=True)
    parser.add_argument("--linked", type=Path, required=True, help="what hf-kfc link wrote")
    args = parser.parse_args()
    result, *files = FILES[args.task]
    learnt, gold, names = (args.data_dir / file for file in files)
    train = concept_counts(read_documents(learnt))
    named = {*Ontology(read_ontology([names])).ids(), *train}
    answers = answers_of_documents(read_documents(args.linked), read_documents(gold))
    findable = [row if row.gold in named else replace(row, gold="") for row in answers.rows]
    told = __doc__.split("\nand on MedMentions\n")[args.task == "medmentions"]
    commands = [" ".join(line.split()) for line in told.splitlines() if line.startswith(" ")]
    results: dict[str, Any] = {"commands": commands}
    for name, rows in (("all", answers.rows), ("without a name is no concept", findable)):
        values = score_answers(Answers(rows, answers.names), train).report().values
        results[name] = {key: values[key] for key in ("documents", "mentions") if key in values}
        results[name] |= {
            key: shares(own) for key, own in values.items() if key in ("overall", "by_frequency")
        }
    (Path(__file__).parent / result).write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
