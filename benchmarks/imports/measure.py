"""What importing the library costs, and how soon the command line answers.

    python benchmarks/imports/measure.py --output benchmarks/imports/results.json

Each is a process of its own; the ways take turns, so that a load on the machine meets all. Told is
the median of the seconds that the process had a processor, user and system.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

NAMES = "for name in hf_kfc.__all__: getattr(hf_kfc, name)"
HELP = "from hf_kfc.commands import main; main({})"
WAYS = {
    "import transformers.trainer": "import transformers.trainer",
    "import hf_kfc, every public name": f"import hf_kfc\n{NAMES}",
    "import hf_kfc": "import hf_kfc",
    "import hf_kfc.ranking": "import hf_kfc.ranking",
    "hf-kfc --help": HELP.format("['--help']"),
    "hf-kfc inspect with a wrong option": HELP.format("['inspect', 'prior', '--nosuch']"),
}
BASE, OURS = list(WAYS)[:2]


def seconds(code: str) -> float:
    """Run code in a process of its own; return the processor time that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure, print and, if asked to, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--output", type=Path, help="The JSON file to write.")
    options = parser.parse_args()
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(options.repeats + 1):  # the first fills the disk's cache
        for way, code in WAYS.items():
            found[way].append(seconds(code))
    medians = {way: round(statistics.median(times[1:]), 3) for way, times in found.items()}
    results = {
        "seconds": medians,
        "every public name over transformers.trainer": round(medians[OURS] / medians[BASE], 3),
        "goal": "at most 1.15",
        "repeats": options.repeats,
        "versions": {name: version(name) for name in ("hf_kfc", "transformers", "torch")},
    }
    text = json.dumps(results, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
