"""What leaving rare tokens out of a prior costs, and what each prior tells of its examples.

    OMP_NUM_THREADS=1 python benchmarks/privacy/cost.py --data_dir data

PsyTAR, then MedMentions, as in docs/explanation/forgetting.md: the CNN of width 128, KFC with
damping 0.1; with the whole prior and with the published one. Writes cost.json and cost.md beside
this file.
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from hf_kfc import ConsolidationPrior, CurvatureArguments
from hf_kfc.audit import audit_tokens
from hf_kfc.audit.membership import membership_auc
from hf_kfc.priors.privacy import MIN_EXAMPLES, without_rare_inputs
from hf_kfc.ranking import (
    CandidateCollator,
    cf_reduction,
    ranking_forward,
    ranking_position_mask,
)
from hf_kfc.ranking.comparison import Comparison, Outcome, command, versions
from laboratory import DataArguments, LearningArguments, RankerArguments
from laboratory.methods import Method
from laboratory.tiers import learn, make_prior, prepare

OLD, NEW = "psytar", "medmentions"
OLD_EXAMPLES, CURVATURE_EXAMPLES = 6000, 2000
SEEDS, MULTIPLES = (0, 1, 2), (1.0, 10.0)
RANKER = RankerArguments(hidden_size=128, max_length=48)
LEARNING = LearningArguments(epochs=6, learning_rate=3e-3, batch_size=32, damping=0.1, bf16=True)
CURVATURE = CurvatureArguments(curvature="kronecker")
KFC = Method.parse("kfc")


class Stage:
    """Tier 1 of one seed, and the prior of it, whole and published.

    Args:
        data: Sizes of the new task, and where the corpora are.
        seed: Of data, weights, order, and of the mentions that the curvature is estimated on.
    """

    def __init__(self, data: DataArguments, seed: int) -> None:
        tasks = [(OLD, replace(data, train_examples=OLD_EXAMPLES)), (NEW, data)]
        self.start, tokenizer, (self.old, self.new) = prepare(RANKER, seed, tasks, CURVATURE)
        self.collator = CandidateCollator(tokenizer)
        self.learning = replace(LEARNING, seed=seed)
        self.first = learn(self.start, self.old, self.collator, self.learning)
        order = random.Random(seed).sample(self.old.train, len(self.old.train))
        self.members, self.left_out = order[:CURVATURE_EXAMPLES], order[CURVATURE_EXAMPLES:]
        task = replace(self.old, train=self.members)
        self.before = self.first.accuracy(self.old.test)
        metrics = {"accuracy": self.before}
        whole = make_prior(KFC, self.first, task, self.collator, CURVATURE, metrics)
        self.priors = {"whole": whole, "published": without_rare_inputs(whole)}

    def compare(self) -> Comparison:
        """Learn the new task with no method and against each prior."""
        comparison = Comparison(OLD, NEW, self.before, [self._learn("none", [], None)])
        for multiple in MULTIPLES:
            strength = multiple * len(self.old.train) / (2 * len(self.new.train))
            comparison.outcomes += [
                self._learn(f"{name}, λ / Bayes = {multiple:g}", [prior], strength)
                for name, prior in self.priors.items()
            ]
        return comparison

    def audit(self) -> dict[str, Any]:
        """Count the tokens that each prior tells, and tell members from others by each."""
        others = {"test mentions": self.old.test, "training mentions left out": self.left_out}
        return {
            name: _tokens(prior, self.start)
            | {
                "membership": {
                    which: [
                        asdict(separation)
                        for separation in membership_auc(
                            prior,
                            self.first.model,
                            self.members,
                            examples,
                            self.collator,
                            forward=ranking_forward,
                            position_mask=ranking_position_mask,
                        )
                    ]
                    for which, examples in others.items()
                }
            }
            for name, prior in self.priors.items()
        }

    def sizes(self) -> dict[str, int]:
        """Count the examples."""
        return {
            "old training": len(self.old.train),
            "curvature": len(self.members),
            "training mentions left out": len(self.left_out),
            "old test": len(self.old.test),
            "new training": len(self.new.train),
            "new test": len(self.new.test),
        }

    def _learn(
        self, method: str, priors: list[ConsolidationPrior], strength: float | None
    ) -> Outcome:
        learning = replace(self.learning, strengths=None if strength is None else [strength])
        learned = learn(self.first.model, self.new, self.collator, learning, priors)
        accuracies = learned.accuracy(self.old.test), learned.accuracy(self.new.test)
        damping = learning.damping if priors else None
        return Outcome(method, learned.trainer.strengths, damping, *accuracies)


def main() -> None:
    """Run everything and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", required=True, help="Folder with the real corpora.")
    data = DataArguments(
        parser.parse_args().data_dir,
        train_examples=2000,
        validation_examples=500,
        test_examples=1500,
    )
    comparisons: list[Comparison] = []
    audits: dict[str, Any] = {}
    for seed in SEEDS:
        stage = Stage(data, seed)
        audits = audits or stage.audit()
        comparisons.append(stage.compare())
        comparisons[-1].settings = {"seed": seed, "examples": stage.sizes()}
    settings = {type(a).__name__: asdict(a) for a in (RANKER, data, LEARNING, CURVATURE)}
    results = {
        "settings": settings | {"min_examples": MIN_EXAMPLES, "seeds": SEEDS},
        "command": command(),
        "versions": versions(),
        "comparisons": [comparison.to_dict() for comparison in comparisons],
        "audits": audits,
    }
    here = Path(__file__).parent
    text = json.dumps(results, indent=2, ensure_ascii=False)
    (here / "cost.json").write_text(text + "\n", encoding="utf-8")
    tables = f"{cost_table(comparisons)}\n\n{_membership_table(audits)}\n"
    (here / "cost.md").write_text(tables, encoding="utf-8")


def _tokens(prior: ConsolidationPrior, start: Any) -> dict[str, Any]:
    (audit,) = audit_tokens(prior, start)
    return {
        "vocabulary": audit.vocabulary,
        "covered": audit.covered,
        "seen": len(audit.seen),
        "moved": len(audit.moved or ()),
        "readable": len(audit.readable),
        "counts": audit.counts,
    }


def cost_table(comparisons: list[Comparison]) -> str:
    """Means over seeds ± standard deviations, in percent."""
    lines = [
        f"| prior | {OLD} before | after | change (%) | CF reduction (%) | {NEW} |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    plain = mean(c.change(c.outcomes[0]) for c in comparisons)
    for index, outcome in enumerate(comparisons[0].outcomes):
        outcomes = [c.outcomes[index] for c in comparisons]
        changes = [c.change(c.outcomes[index]) for c in comparisons]
        reduction = f"{100 * cf_reduction(mean(changes), plain):.0f}" if index else ""
        cells = (
            outcome.method,
            _spread([100 * (c.old_before or 0.0) for c in comparisons]),
            _spread([100 * (o.old or 0.0) for o in outcomes]),
            _spread(changes),
            reduction,
            _spread([100 * o.new for o in outcomes]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{mean(values):.1f} ± {stdev(values):.1f}"


def _membership_table(audits: dict[str, Any]) -> str:
    """AUC of each score, of the whole prior and of the published one, with 95 % intervals."""
    lines = [f"| members against | told apart by | {' | '.join(audits)} |", "|---|---|---|---|"]
    tests = [audit["membership"] for audit in audits.values()]
    for others, scores in tests[0].items():
        for index, score in enumerate(scores):
            cells = [
                "{auc:.3f} ({low:.3f} to {high:.3f})".format(**test[others][index])
                for test in tests
            ]
            lines.append(f"| {others} | {score['score']} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
