"""What merging ten priors into one, and compressing one, costs in forgetting.

    OMP_NUM_THREADS=1 python benchmarks/approximations/measure.py --data_dir data
    OMP_NUM_THREADS=1 python benchmarks/approximations/measure.py --data_dir data --ranker FOLDER

The CNN of width 128, or three layers of an encoder, on real corpora, KFC with damping 0.1.
Compressed: PsyTAR, then CodiEsp, against the prior as estimated, with a cheaper penalty, and in
smaller forms. Merged: PsyTAR in ten parts by document, learnt one after another, each with a prior
of its own; then CodiEsp against all ten, and against one merged of them. Writes results of the
ranker, seed by seed, and results.md of all rankers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_kfc import ConsolidationPrior, CurvatureArguments
from hf_kfc.ranking import CandidateCollator
from hf_kfc.ranking.comparison import command, versions
from hf_kfc.ranking.tasks import prepare_task
from laboratory import DataArguments, LearningArguments, RankerArguments
from laboratory.data import TaskData, encode_task
from laboratory.methods import Method
from laboratory.periods import split_periods
from laboratory.tiers import as_learned, learn, make_prior, prepare

HERE = Path(__file__).parent
OLD, NEW = "psytar", "codiesp"
TITLES = {
    "compressed": "One prior, compressed: PsyTAR, then CodiEsp",
    "merged": "Ten priors, merged: PsyTAR in ten parts, then CodiEsp",
}
SEEDS, PARTS, MULTIPLE = (0, 1), 10, 10.0
CNN = RankerArguments(hidden_size=128, max_length=48)
CNN_LEARNING = LearningArguments(epochs=5, learning_rate=3e-3, damping=0.1, bf16=True)
ENCODER_LEARNING = LearningArguments(epochs=2, learning_rate=4e-4, damping=0.1, bf16=True)
CURVATURE = CurvatureArguments(curvature="kronecker")
KFC = Method.parse("kfc")
HALF = torch.bfloat16
SMALLER: dict[str, dict[str, Any]] = {
    "bfloat16": {"dtype": HALF},
    "rank 64, bfloat16": {"rank": 64, "dtype": HALF},
    "rank 32, bfloat16": {"rank": 32, "dtype": HALF},
    "rank 16, bfloat16": {"rank": 16, "dtype": HALF},
}
CHEAPER: dict[str, dict[str, Any]] = {
    "as estimated, in every 4th step": {"penalty_every": 4},
    "as estimated, products in bfloat16": {"penalty_dtype": "bfloat16"},
}
"""Fields of LearningArguments."""
RANKS = (1, 2, 4, 8)


class Stage:
    """Both tasks of one seed, and the model that is to be consolidated.

    Args:
        ranker: Which one.
        learning: How it learns.
        old: Size of the old task, and where the corpora are.
        new: Size of the new one.
        seed: Of data, weights and order.
    """

    def __init__(
        self,
        ranker: RankerArguments,
        learning: LearningArguments,
        old: DataArguments,
        new: DataArguments,
        seed: int,
    ) -> None:
        self.learning = replace(learning, seed=seed)
        tasks = [(OLD, old), (NEW, new)]
        self.start, tokenizer, (self.old, self.new) = prepare(ranker, seed, tasks, CURVATURE)
        self.collator = CandidateCollator(tokenizer)
        splits = prepare_task(OLD, data_dir=old.data_dir, seed=seed, **old.config).as_dataset()
        self.parts = [
            encode_task(f"{OLD}-{number}", part, tokenizer, ranker.max_length)
            for number, part in enumerate(split_periods(OLD, splits, PARTS), 1)
        ]

    def compressed(self) -> Iterator[dict[str, Any]]:
        """Consolidate against one prior, as it is and in smaller forms."""
        first = learn(self.start, self.old, self.collator, self.learning).model
        whole = self._prior(first, self.old)
        yield self._learn("none", first, [])
        yield self._learn("as estimated", first, [whole])
        for name, how in CHEAPER.items():
            yield self._learn(name, first, [whole], **how)
        for name, how in SMALLER.items():
            yield self._learn(name, first, [whole.compress(**how)])

    def merged(self) -> Iterator[dict[str, Any]]:
        """Consolidate against ten priors, all and merged."""
        model, priors = self.start, list[ConsolidationPrior]()
        for part in self.parts:
            learning = replace(self.learning, strengths=_strengths(priors, len(part.train)))
            model = learn(model, part, self.collator, learning, priors).model
            priors.append(self._prior(model, part))
        yield self._learn("none", model, [])
        yield self._learn("all ten", model, priors)
        for rank in RANKS:
            merged = ConsolidationPrior.merge(priors, rank=rank)
            yield self._learn(f"merged, rank {rank}", model, [merged])
        yield self._learn("the last alone", model, priors[-1:])

    def _prior(self, model: PreTrainedModel, task: TaskData) -> ConsolidationPrior:
        learned = as_learned(model, self.collator, self.learning)
        return make_prior(KFC, learned, task, self.collator, CURVATURE, {})

    def _learn(
        self, what: str, model: PreTrainedModel, priors: list[ConsolidationPrior], **how: Any
    ) -> dict[str, Any]:
        strengths = _strengths(priors, len(self.new.train))
        learning = replace(self.learning, strengths=strengths, **how)
        learned = learn(model, self.new, self.collator, learning, priors)
        before = as_learned(model, self.collator, self.learning).accuracy(self.old.test)
        errors = priors[0].provenance.approximation_errors if priors else {}
        return {
            "prior": what,
            "seed": self.learning.seed,
            "old_before": before,
            "old": learned.accuracy(self.old.test),
            "new": learned.accuracy(self.new.test),
            "bytes_over_model": sum(map(_bytes, priors)) / _model_bytes(model),
            "errors": dict(errors),
        }


def _strengths(priors: list[ConsolidationPrior], new: int) -> list[float] | None:
    return [MULTIPLE * prior.provenance.num_examples / (2 * new) for prior in priors] or None


def _model_bytes(model: PreTrainedModel) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def _bytes(prior: ConsolidationPrior) -> int:
    """Bytes of what a repository beside the model holds: the anchor is the model, pointed at."""
    with tempfile.TemporaryDirectory() as folder:
        prior.save_pretrained(folder)
        files = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
    return files - sum(t.numel() * 4 for t in prior.anchor.values())


def _table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| prior | bytes / model's | error of a layer: median, largest | PsyTAR before | after"
        " | drop (points) | prevented (%) | CodiEsp |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    by_name: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_name.setdefault(row["prior"], []).append(row)
    plain = 100 * mean(row["old_before"] - row["old"] for row in by_name["none"])
    for name, own in by_name.items():
        errors = [error for row in own for error in row["errors"].values()]
        drops = [100 * (row["old_before"] - row["old"]) for row in own]
        spread = f" ± {stdev(drops) / len(drops) ** 0.5:.1f}" if len(drops) > 1 else ""
        lines.append(
            f"| {name} | {mean(r['bytes_over_model'] for r in own):.2f} | "
            + (f"{100 * median(errors):.1f} %, {100 * max(errors):.1f} %" if errors else "")
            + f" | {100 * mean(r['old_before'] for r in own):.1f}"
            f" | {100 * mean(r['old'] for r in own):.1f}"
            f" | {mean(drops):.1f}{spread}"
            f" | {f'{100 * (1 - mean(drops) / plain):.0f}' if name != 'none' and plain else ''}"
            f" | {100 * mean(r['new'] for r in own):.1f} |"
        )
    return lines


def _page() -> str:
    """The tables of all rankers that were measured."""
    parts = ["# What approximations of priors forget\n\nMade by `measure.py`."]
    for path in sorted(HERE.glob("results-*.json")):
        results = json.loads(path.read_text())
        parts.append(f"## {results['ranker']}\n\n`{results['command']}`")
        for key, rows in results["rows"].items():
            seeds = sorted({row["seed"] for row in rows})
            named = ("seed " if len(seeds) == 1 else "seeds ") + ", ".join(map(str, seeds))
            parts.append(f"{TITLES[key]}, {named}:")
            parts.append("\n".join(_table(rows)))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Run everything and write the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", required=True, help="Folder with the real corpora.")
    parser.add_argument("--ranker", default="cnn", help="'cnn', or the folder of an encoder.")
    arguments = parser.parse_args()
    old = DataArguments(arguments.data_dir, train_examples=3000, test_examples=1000)
    new = replace(old, train_examples=1500)
    ranker, learning = CNN, CNN_LEARNING
    if arguments.ranker != "cnn":
        ranker = RankerArguments(arguments.ranker, num_layers=3, max_length=40)
        learning = ENCODER_LEARNING
        old = replace(old, train_examples=1600, num_candidates=5)
        new = replace(old, train_examples=640)
    rows: dict[str, list[dict[str, Any]]] = {"compressed": [], "merged": []}
    name = Path(arguments.ranker).name
    for seed in tqdm(SEEDS, desc="seeds"):
        stage = Stage(ranker, learning, old, new, seed)
        rows["compressed"] += stage.compressed()
        rows["merged"] += stage.merged()
        results = {"ranker": name, "command": command(), "versions": versions(), "rows": rows}
        (HERE / f"results-{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    (HERE / "results.md").write_text(_page())


if __name__ == "__main__":
    main()
