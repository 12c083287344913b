"""From raw files to linked mentions: train a small ranker, calibrate, link a test set, measure.

    python benchmarks/linking/end_to_end.py --data data --task bc5cdr
    python benchmarks/linking/end_to_end.py --data data --task medmentions

writes benchmarks/linking/TASK.json. The linker of the last run stays in runs/linking/TASK;
--measure links with it and trains nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import TrainingArguments

from hf_kfc.ranking import (
    CandidateCollator,
    EntityLinker,
    Mention,
    RankingTrainer,
    encode_splits,
    load_examples,
    new_cnn,
)
from hf_kfc.ranking.concepts import is_nil
from hf_kfc.ranking.corpora.config import stable_fraction
from hf_kfc.ranking.formats.lines import read_json_lines
from hf_kfc.ranking.formats.pubtator import read_pubtator
from hf_kfc.ranking.linker import calibration_error, with_answers
from hf_kfc.ranking.tasks import prepare_task

HERE = Path(__file__).parent
SIZES = {  # examples learnt, epochs
    "bc5cdr": (None, 4),
    "medmentions": (8_000, 2),
}
WIDTH, VOCABULARY, MAX_LENGTH = 96, 8_000, 48
CALIBRATED_ON, MEASURED_ON = 4_000, 10_000  # mentions at most, drawn at random


def read(task: str, data: Path, split: str) -> list[Mention]:
    """All mentions of one concept or none, those of a concept without a name too."""
    if task == "bc5cdr":
        file = {"validation": "dev"}.get(split, split)
        documents = read_pubtator(data / f"bc5cdr/{file}_corpus.pubtator.txt.gz")
        return list(with_answers(documents))
    file = "test" if split == "test" else "train"
    rows = (row for _, row in read_json_lines(data / f"medmentions_st21pv/{file}.jsonl.gz"))
    return [
        Mention(row["doc"], row["mention"], row["left"], row["right"], row["cui"])
        for row in rows
        if split == "test" or stable_fraction(row["doc"]) < 0.1  # as the task carves it out
    ]


def train(task: str, data: Path, output: Path) -> dict[str, Any]:
    """Learn to rank, and save the linker."""
    examples, epochs = SIZES[task]
    limits = {"train": examples, "validation": 1_000, "test": 1_000}
    limits = {split: limit for split, limit in limits.items() if limit}
    builder = prepare_task(task, data_dir=data, max_examples=limits)
    splits = load_examples(task, data_dir=data, max_examples=limits)
    model, tokenizer = new_cnn(splits["train"], hidden_size=WIDTH, vocab_size=VOCABULARY)
    encoded = encode_splits(splits, tokenizer, MAX_LENGTH)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            learning_rate=2e-3,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            logging_steps=200,
        )
        trainer = RankingTrainer(
            model,
            arguments,
            data_collator=CandidateCollator(tokenizer),
            train_dataset=encoded["train"],
        )
        trainer.train()
    seconds = time.perf_counter() - began
    config = builder.config
    linker = EntityLinker(
        model,
        tokenizer,
        builder.ontology,
        retrieval=config.retrieval,
        num_candidates=config.num_candidates,
        context_words=config.context_words,
        max_length=MAX_LENGTH,
    )
    linker.save_pretrained(output)
    return {
        "examples": len(encoded["train"]),
        "epochs": epochs,
        "width": WIDTH,
        "seconds": round(seconds),
        "learnt": sorted({row["candidate_ids"][row["label"]] for row in splits["train"]}),
    }


def measure(linker: EntityLinker, mentions: Sequence[Mention], learnt: set[str]) -> dict[str, Any]:
    """Link mentions, and compare with their concepts."""
    began = time.perf_counter()
    linked = linker.link_mentions(mentions, batch_size=64)
    seconds = time.perf_counter() - began
    ontology = linker.ontology
    golds = [None if is_nil(m.concept) else ontology.position(m.concept) for m in mentions]
    hits = linker.retriever.search([m.text for m in mentions], linker.settings.num_candidates)
    ranks = np.full(len(mentions), linker.settings.num_candidates)
    right, given, seen = np.zeros((3, len(mentions)), bool)
    for i, (own, gold, found) in enumerate(zip(linked, golds, hits, strict=True)):
        if gold is not None:
            places = [hit.position for hit in found if hit.score > 0]
            ranks[i] = places.index(gold) if gold in places else ranks[i]
            right[i] = bool(own.candidates) and own.candidates[0].id == ontology[gold].id
            seen[i] = ontology[gold].id in learnt
        given[i] = own.concept is not None
    linked_to = np.array([not is_nil(mention.concept) for mention in mentions])
    named = np.array([gold is not None for gold in golds])
    found = ranks < linker.settings.num_candidates
    return {
        "mentions": len(mentions),
        "with a concept": int(linked_to.sum()),
        "of these with a name": int(named.sum()),
        "recall of retrieval, of all": {k: share(ranks < k, linked_to) for k in (1, 5, 10)},
        "recall of retrieval, of named": {k: share(ranks < k, named) for k in (1, 5, 10)},
        "accuracy@1, of all": share(right, linked_to),
        "accuracy@1, of named": share(right, named),
        "accuracy@1, of found": share(right, found),
        "accuracy@1, of named, learnt": share(right, named & seen),
        "accuracy@1, of named, not learnt": share(right, named & ~seen),
        "calibration error": calibration_error([own.probability for own in linked], right),
        "given a concept": int(given.sum()),
        "precision": share(right, given),
        "recall, of named": share(right & given, named),
        "no concept of the ontology": int((~named).sum()),
        "precision of none": share(~named, ~given),
        "recall of none": share(~given, ~named),
        "seconds": round(seconds, 1),
    }


def share(chosen: Any, of: Any) -> float | None:
    """Share of some mentions that are chosen."""
    return round(float((chosen & of).sum() / of.sum()), 4) if of.any() else None


def main() -> None:
    """Train unless told not to, calibrate, measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the corpora")
    parser.add_argument("--task", choices=SIZES, required=True)
    parser.add_argument("--measure", action="store_true", help="train nothing")
    args = parser.parse_args()
    folder = Path("runs/linking") / args.task
    record = folder.with_suffix(".json")
    if not args.measure:
        record.write_text(json.dumps(train(args.task, args.data, folder)))
    training = json.loads(record.read_text())
    learnt = set(training.pop("learnt"))
    linker = EntityLinker.from_pretrained(folder)
    development = read(args.task, args.data, "validation")
    chosen = random.Random(0).sample(development, min(CALIBRATED_ON, len(development)))
    test = read(args.task, args.data, "test")
    test = random.Random(0).sample(test, min(MEASURED_ON, len(test)))
    alone = measure(linker, test, learnt)
    calibration = linker.calibrate(chosen, batch_size=64)
    results = {
        "command": f"python benchmarks/linking/end_to_end.py --data data --task {args.task}",
        "training": training,
        "concepts": len(linker.ontology),
        "names": linker.ontology.num_names,
        "retrieval": linker.settings.retrieval,
        "calibration": {name: round(value, 4) for name, value in asdict(calibration).items()},
        "test, ranker alone": {key: alone[key] for key in alone if key.startswith("accuracy")}
        | {"calibration error": alone["calibration error"]},
        "test": measure(linker, test, learnt),
    }
    linker.save_pretrained(folder)
    (HERE / f"{args.task}.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    datasets.disable_progress_bars()
    main()
