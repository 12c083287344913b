"""What the guide's three commands give on MedMentions, as numbers to keep.

    accelerate launch recipes/tier1.py --dataset medmentions --data_dir data \
        --max_train_examples 20000 --max_test_examples 2000 --num_train_epochs 3 \
        --output_dir runs/medmentions
    hf-kfc link data/medmentions_st21pv/test.jsonl.gz --model runs/medmentions \
        --ontology data/ontologies/cui_names_strict.tsv.gz \
        --names_from data/medmentions_st21pv/train.jsonl.gz --retrieval tfidf \
        --development data/medmentions_st21pv/dev_mentions_nocontext.jsonl.gz \
        --output linked.jsonl
    python benchmarks/linking/commands.py --data_dir data --linked linked.jsonl

Writes ``medmentions.json`` beside this file: what ``hf-kfc score`` says of ``linked.jsonl``, and
the same of the mentions whose concept has a name, which are all that a linker could find; the
others are those of which it should say that there is no concept.
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

FOLDER, NAMES = "medmentions_st21pv", "ontologies/cui_names_strict.tsv.gz"


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
    parser.add_argument("--linked", type=Path, required=True, help="what hf-kfc link wrote")
    args = parser.parse_args()
    data = args.data_dir / FOLDER
    train = concept_counts(read_documents(data / "train.jsonl.gz"))
    named = {*Ontology(read_ontology([args.data_dir / NAMES])).ids(), *train}
    answers = answers_of_documents(
        read_documents(args.linked), read_documents(data / "test.jsonl.gz")
    )
    findable = [row if row.gold in named else replace(row, gold="") for row in answers.rows]
    commands = [line.strip() for line in __doc__.splitlines() if line.startswith(" ")]
    results: dict[str, Any] = {"commands": commands}
    for name, rows in (("all", answers.rows), ("without a name is no concept", findable)):
        values = score_answers(Answers(rows, answers.names), train).report().values
        results[name] = {key: values[key] for key in ("documents", "mentions") if key in values}
        results[name] |= {
            key: shares(own) for key, own in values.items() if key in ("overall", "by_frequency")
        }
    (Path(__file__).parent / "medmentions.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
