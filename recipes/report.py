"""A report of the experiment over all permutations: Markdown, one HTML page, pictures.

    python recipes/report.py --results runs/cnn.jsonl runs/encoder.jsonl --toys benchmarks/toys \\
        --output_dir docs/report

It is made of results files alone (of recipes/permutations.py, and with --stream of
recipes/stream.py), so it may be made while the experiment goes on: runs that are missing are
counted.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from laboratory import command_line
from laboratory.report import ReportArguments, run_report

if __name__ == "__main__":
    command_line(run_report, (ReportArguments,), __doc__)
