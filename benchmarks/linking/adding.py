"""What it costs to add 1,000 concepts to a linker, beside making its ontology and index anew.

    python benchmarks/linking/adding.py --data_dir data

Seconds of the processor, medians of five; writes ``adding.json`` beside this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from speed import NAMES, NUM_NAMES, concepts

from hf_kfc.ranking.ontologies import Ontology
from hf_kfc.ranking.ontologies.ontology import widened
from hf_kfc.ranking.retrieval import RETRIEVERS

ADDED = {f"X{n}": [f"new illness {n}", f"novel disease of type {n}"] for n in range(1_000)}


def seconds(call: Callable[[], Any]) -> float:
    """Processor seconds of a call, the median of five."""
    times = []
    for _ in range(5):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return round(statistics.median(times), 3)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=Path, required=True, help="folder of the corpora")
    args = parser.parse_args()
    datasets.disable_progress_bars()
    ontology = Ontology(concepts(args.data_dir / NAMES, NUM_NAMES))
    ontology.position("")  # the identifiers are looked up by now
    larger, changed = ontology.extended(ADDED)
    results: dict[str, Any] = {
        "command": "python benchmarks/linking/adding.py --data_dir data",
        "concepts": len(ontology),
        "names": ontology.num_names,
        "added": len(ADDED),
        "ontology": {
            "added": seconds(lambda: ontology.extended(ADDED)),
            "anew": seconds(lambda: Ontology(widened(ontology, ADDED))),
        },
    }
    for name, kind in RETRIEVERS.items():
        retriever = kind(ontology)
        results[name] = {
            "added": seconds(lambda own=retriever: own.extended(larger, changed)),
            "anew": seconds(lambda own=kind: own(larger)),
        }
    (Path(__file__).parent / "adding.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
