"""What it costs that no factor of a prior is made of rare tokens.

    OMP_NUM_THREADS=1 python benchmarks/privacy/unseen.py --data_dir data

PsyTAR, then MedMentions, with the settings and seeds of cost.py in a smaller size: the prior as it
is estimated, with the rows of rare tokens dropped afterwards, and estimated with rare tokens
read as the unknown token, their rows dropped too. Writes unseen.json and unseen.md beside this
file.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cost import CURVATURE, KFC, LEARNING, MULTIPLES, NEW, OLD, RANKER, SEEDS, cost_table

from hf_kfc import ConsolidationPrior
from hf_kfc.priors.privacy import MIN_EXAMPLES, without_rare_inputs
from hf_kfc.ranking import CandidateCollator
from hf_kfc.ranking.comparison import Comparison, Outcome, command, versions
from laboratory import DataArguments
from laboratory.tiers import learn, make_prior, prepare

DATA = DataArguments(train_examples=1500, validation_examples=100, test_examples=1000)
OLD_EXAMPLES, CURVATURE_EXAMPLES = 3000, 1000


def compare(data: DataArguments, seed: int) -> tuple[Comparison, dict[str, Any]]:
    """Learn both tasks, the second with no method and against each prior.

    Args:
        data: Sizes of the new task, and where the corpora are.
        seed: Of data, weights and order.

    Returns:
        The outcomes, and the counts of examples and tokens.
    """
    tasks = [(OLD, replace(data, train_examples=OLD_EXAMPLES)), (NEW, data)]
    start, tokenizer, (old, new) = prepare(RANKER, seed, tasks, CURVATURE)
    collator, learning = CandidateCollator(tokenizer), replace(LEARNING, seed=seed)
    first = learn(start, old, collator, learning)
    before = first.accuracy(old.test)
    members = replace(old, train=old.train[:CURVATURE_EXAMPLES])

    def estimated(min_token_examples: int) -> ConsolidationPrior:
        args = replace(CURVATURE, min_token_examples=min_token_examples)
        return make_prior(KFC, first, members, collator, args, {"accuracy": before})

    whole, unseen = estimated(0), without_rare_inputs(estimated(MIN_EXAMPLES))
    priors = {
        "as estimated": whole,
        "rare rows dropped": without_rare_inputs(whole),
        "rare tokens unseen": unseen,
    }

    def outcome(name: str, prior: ConsolidationPrior | None, strength: float | None) -> Outcome:
        own = replace(learning, strengths=None if strength is None else [strength])
        learned = learn(first.model, new, collator, own, [] if prior is None else [prior])
        accuracies = learned.accuracy(old.test), learned.accuracy(new.test)
        damping = None if prior is None else own.damping
        return Outcome(name, learned.trainer.strengths, damping, *accuracies)

    comparison = Comparison(OLD, NEW, before, [outcome("none", None, None)])
    for multiple in MULTIPLES:
        strength = multiple * len(old.train) / (2 * len(new.train))
        comparison.outcomes += [
            outcome(f"{name}, λ / Bayes = {multiple:g}", prior, strength)
            for name, prior in priors.items()
        ]
    counts = {
        "old training": len(old.train),
        "curvature": len(members.train),
        "old test": len(old.test),
        "new training": len(new.train),
        "new test": len(new.test),
        "vocabulary": len(tokenizer),
        "tokens kept": {name: _kept(prior) for name, prior in priors.items()},
    }
    return comparison, counts


def main() -> None:
    """Run everything and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", required=True, help="Folder with the real corpora.")
    data = replace(DATA, data_dir=parser.parse_args().data_dir)
    comparisons, counts = zip(*(compare(data, seed) for seed in SEEDS), strict=True)
    settings = {
        type(a).__name__: asdict(a)
        for a in (RANKER, replace(data, data_dir=None), LEARNING, CURVATURE)
    }
    results = {
        "settings": settings | {"min_examples": MIN_EXAMPLES, "seeds": SEEDS},
        "counts": counts,
        "command": command(),
        "versions": versions(),
        "comparisons": [comparison.to_dict() for comparison in comparisons],
    }
    here = Path(__file__).parent
    text = json.dumps(results, indent=2, ensure_ascii=False)
    (here / "unseen.json").write_text(text + "\n", encoding="utf-8")
    (here / "unseen.md").write_text(cost_table(comparisons) + "\n", encoding="utf-8")


def _kept(prior: ConsolidationPrior) -> int:
    """Count the tokens of which the data's statistics are in a prior."""
    (block,) = (b for b in prior.curvature.blocks if b.is_embedding)
    moment = block.operator.input_moment()
    return 0 if moment is None else int((moment > 0).sum())


if __name__ == "__main__":
    main()
