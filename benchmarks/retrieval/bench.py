"""Measure candidate retrieval; write ``results.json`` and ``results.md`` beside this file.

    python benchmarks/retrieval/bench.py --data data

Each part runs in a process of its own, so that its peak memory is its own:

- ``reference``: rank_bm25 and ours on 100,000 names, in turns, and whether they agree;
- ``medmentions``: candidates for all mentions of MedMentions (needs ``--data``), and their recall;
- ``large``: 4 M concepts with 10 M names (BM25), 0.4 M with 1 M (TF-IDF): one process builds and
  saves the index, another maps it and searches.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from invented import invented_concepts, invented_queries
from rank_bm25 import BM25Okapi

from hf_kfc.ranking.concepts import surface_forms
from hf_kfc.ranking.corpora.config import stable_fraction
from hf_kfc.ranking.formats.lines import read_lines
from hf_kfc.ranking.ontologies import Ontology, read_ontology
from hf_kfc.ranking.ontologies.ontology import widened
from hf_kfc.ranking.retrieval import RETRIEVERS, Bm25Retriever, Hit, get_retriever
from hf_kfc.ranking.schema import Mention

HERE = Path(__file__).parent
K = 10
ROUNDS = 5


def measured(start: float) -> dict[str, float]:
    """Seconds since a moment, and the highest memory that this process ever had."""
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def rate(retriever: Any, queries: list[str]) -> dict[str, float]:
    """Queries a second: by the clock, and by the processor if others keep it busy too."""
    wall, cpu = time.perf_counter(), time.process_time()
    retriever.search(queries, K)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "queries_per_s": round(len(queries) / wall, 1),
        "queries_per_cpu_s": round(len(queries) / cpu, 1),
    }


def reference(concepts: int) -> dict[str, Any]:
    """Time rank_bm25 and ours in turns, over the same names and queries of the same kind."""
    ontology = Ontology(invented_concepts(concepts))
    retriever = Bm25Retriever(ontology)
    normalised = Bm25Retriever.normalised
    names = dict.fromkeys((concept, normalised(name)) for concept, name in ontology.names())
    owners = np.array([concept for concept, _ in names])
    peer = BM25Okapi([text.split() for _, text in names])
    queries = invented_queries(5000, concepts)
    peer_queries = queries[:: len(queries) // 20][:20]
    rounds, difference = [], 0.0
    for _ in range(ROUNDS):
        start = time.perf_counter()
        scores = [peer.get_scores(normalised(query).split()) for query in peer_queries]
        best = [np.argsort(own)[::-1][:K] for own in scores]
        peer_rate = len(best) / (time.perf_counter() - start)
        rounds.append((peer_rate, rate(retriever, queries)["queries_per_s"]))
    for hits, own in zip(retriever.search(peer_queries, K), scores, strict=True):
        of_concepts = np.zeros(concepts)
        np.maximum.at(of_concepts, owners, own)
        expected = np.sort(of_concepts)[::-1][:K]
        difference = max(difference, np.abs([hit.score for hit in hits] - expected).max())
    ratios = [ours / theirs for theirs, ours in rounds]
    return {
        "names": len(names),
        "rounds": ROUNDS,
        "rank_bm25_queries_per_s": round(statistics.median(r[0] for r in rounds), 2),
        "ours_queries_per_s": round(statistics.median(r[1] for r in rounds), 1),
        "ratio_median": round(statistics.median(ratios)),
        "ratio_min": round(min(ratios)),
        "largest_difference_of_scores": float(f"{difference:.1e}"),
    }


def medmentions(data: Path) -> dict[str, Any]:
    """Retrieve candidates for all mentions; recall is that of the test ones."""
    train, development, test = (
        read_mentions(data / "medmentions_st21pv" / f"{name}.jsonl.gz")
        for name in ("train", "dev_mentions_nocontext", "test")
    )
    # The builder keeps a tenth of the train documents for validation.
    train_names = [m for m in train if stable_fraction(m.document) >= 0.1]
    mentions = [*train, *development, *test]
    results: dict[str, Any] = {"mentions": len(mentions)}
    for label, naming in (
        ("names of train", train_names),
        ("names of train and development", [*train_names, *development]),
    ):
        concepts = read_ontology([data / "ontologies" / "cui_names_strict.tsv.gz"])
        ontology = Ontology(widened(Ontology(concepts), surface_forms(naming)))
        for name, kind in RETRIEVERS.items():
            start = time.perf_counter()
            retriever = kind(ontology)
            build = measured(start)["seconds"]
            start = time.perf_counter()
            hits = retriever.search([m.text for m in mentions], K)
            results[f"{name}, {label}"] = {
                "concepts": len(ontology),
                "names": retriever.num_names,
                "build_seconds": build,
                "search_seconds": measured(start)["seconds"],
                **recall(ontology, test, hits[-len(test) :]),
            }
    return results | {"peak_gib": measured(0)["peak_gib"]}


def recall(ontology: Ontology, mentions: list[Mention], hits: list[list[Hit]]) -> dict[str, float]:
    """Share of the mentions whose concept was found: of all, and of those it has a name for."""
    golds = [ontology.position(mention.concept) for mention in mentions]
    found = sum(
        any(hit.position == gold and hit.score > 0 for hit in own)
        for gold, own in zip(golds, hits, strict=True)
    )
    named = sum(gold is not None for gold in golds)
    return {
        f"recall_at_{K}": round(found / len(golds), 4),
        f"recall_at_{K}_of_named": round(found / named, 4),
    }


def read_mentions(path: Path) -> list[Mention]:
    """Read the texts of mentions and their concepts."""
    records = (json.loads(line) for _, line in read_lines(path))
    return [Mention(r["doc"], r["mention"], "", "", r["cui"]) for r in records]


def build(name: str, concepts: int, folder: str) -> dict[str, Any]:
    """Invent an ontology, save it, and build and save its index."""
    start = time.perf_counter()
    ontology = Ontology(invented_concepts(concepts))
    ontology.save(Path(folder) / "ontology.arrow")
    made = measured(start)
    start = time.perf_counter()
    names = get_retriever(name, ontology, folder).num_names
    files = [path for path in Path(folder).rglob("*.*") if path.parent != Path(folder)]
    return {
        "concepts": concepts,
        "names": ontology.num_names,
        "distinct_names": names,
        "ontology_seconds": made["seconds"],
        "index_seconds": measured(start)["seconds"],
        "index_gib": round(sum(path.stat().st_size for path in files) / 2**30, 2),
        "build_peak_gib": measured(0)["peak_gib"],
    }


def search(name: str, concepts: int, folder: str) -> dict[str, Any]:
    """Map a saved index and search it."""
    start = time.perf_counter()
    retriever = get_retriever(name, Ontology.load(Path(folder) / "ontology.arrow"), folder)
    opened = measured(start)["seconds"]
    queries = invented_queries(1500, concepts)
    rate(retriever, queries[:200])  # reads the files once
    rates = [rate(retriever, queries[start : start + 200]) for start in range(200, 1200, 200)]
    return {
        "open_seconds": opened,
        **{key: statistics.median(r[key] for r in rates) for key in rates[0]},
        "search_peak_gib": measured(0)["peak_gib"],
    }


def alone(function: Any, *arguments: Any) -> dict[str, Any]:
    """Run a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return dict(pool.submit(function, *arguments).result())


def large(name: str, concepts: int) -> dict[str, Any]:
    """Build an index in one process and search it in another."""
    with tempfile.TemporaryDirectory() as folder:
        return alone(build, name, concepts, folder) | alone(search, name, concepts, folder)


def table(results: dict[str, Any]) -> str:
    """Write results as Markdown, a table for each part."""
    lines = [f"Made by `bench.py` on {results['machine']}.", ""]
    for part, values in results.items():
        if isinstance(values, dict):
            rows = {k: v for k, v in values.items() if not isinstance(v, dict)}
            rows |= {
                f"{name}: {k}": v
                for name, own in values.items()
                if isinstance(own, dict)
                for k, v in own.items()
            }
            lines += [f"| {part} | |", "|---|---:|"]
            lines += [f"| {key.replace('_', ' ')} | {value:,} |" for key, value in rows.items()]
            lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with the real corpora")
    parser.add_argument("--concepts", type=int, default=4_000_000, help="of the large ontology")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of the results")
    arguments = parser.parse_args()
    cores = f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f} at the start"
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {cores}, Python {platform.python_version()}, "
        f"NumPy {np.__version__}"
    }
    results["reference"] = alone(reference, 40_000)
    if arguments.data:
        results["medmentions"] = alone(medmentions, arguments.data)
    else:
        print("no --data: the part medmentions is left out")
    results["large bm25"] = large("bm25", arguments.concepts)
    results["large tfidf"] = large("tfidf", arguments.concepts // 10)
    (arguments.output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (arguments.output / "results.md").write_text(table(results))
    print(table(results))


if __name__ == "__main__":
    main()
