"""What `sharing` makes of a penalty: one old task, one new one, one strength after another.

    python benchmarks/approximations/retention.py --data_dir data --old psytar --new codiesp

KFC, the CNN of width 96, 3,000 and 1,000 training mentions, 4 epochs at 3e-3, curvature of 1,000
mentions, 900 test mentions: 1.6 points are one standard error. Adds lines to retention.jsonl.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from hf_kfc.curvature import CurvatureArguments
from hf_kfc.ranking import CandidateCollator
from hf_kfc.ranking.comparison import command, versions
from laboratory import DataArguments, LearningArguments, RankerArguments
from laboratory.methods import Method
from laboratory.tiers import as_learned, learn, make_prior, prepare

RESULTS = Path(__file__).with_name("retention.jsonl")
RANKER = RankerArguments(hidden_size=96, max_length=40)
LEARNING = LearningArguments(epochs=4, learning_rate=3e-3, bf16=True, damping=0.1)
STRENGTHS = {
    ("expand", 0.1): (0.05, 0.15, 0.5, 1.5, 5.0),
    ("centred", 0.1): (0.15, 0.5, 1.5, 5.0, 15.0, 50.0),
    ("centred", 1.0): (1.5, 5.0, 15.0),
}
"""λ by sharing and damping."""


def main() -> None:
    """Learn the old task, then the new one against each prior, and write what both come to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", required=True, help="Folder with the real corpora.")
    parser.add_argument("--old", required=True, help="The task that is to be kept.")
    parser.add_argument("--new", required=True, help="The task that is learnt then.")
    parser.add_argument("--seed", type=int, default=0, help="Of data, weights and order.")
    args = parser.parse_args()
    data = DataArguments(
        args.data_dir, train_examples=3000, validation_examples=100, test_examples=900
    )
    tasks = [(args.old, data), (args.new, replace(data, train_examples=1000))]
    start, tokenizer, (old, new) = prepare(
        RANKER, args.seed, tasks, CurvatureArguments(), common_vocabulary=True
    )
    collator, learning = CandidateCollator(tokenizer), replace(LEARNING, seed=args.seed)
    first = learn(start, old, collator, learning)
    before = first.accuracy(old.test)
    kept = replace(old, train=[old.train[index] for index in range(1000)])
    pair = {"old": args.old, "new": args.new, "seed": args.seed}
    with RESULTS.open("a") as file:
        print(json.dumps({"command": command(), "versions": versions()}), file=file, flush=True)
        for (sharing, damping), strengths in {("none", 0.0): (0.0,), **STRENGTHS}.items():
            how = CurvatureArguments(sharing="expand" if sharing == "none" else sharing)
            priors = []
            if sharing != "none":
                priors = [make_prior(Method.parse("kfc"), first, kept, collator, how, {})]
            for strength in strengths:
                own = replace(learning, damping=damping, strengths=[strength] if priors else None)
                learned = learn(first.model, new, collator, own, priors)
                after = as_learned(learned.model, collator, learning).accuracy(old.test)
                row = {"sharing": sharing, "damping": damping, "strength": strength}
                accuracies = {
                    "before": before,
                    "after": after,
                    "new_accuracy": learned.accuracy(new.test),
                }
                print(json.dumps(pair | row | accuracies), file=file, flush=True)


if __name__ == "__main__":
    main()
