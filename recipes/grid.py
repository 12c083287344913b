"""A grid over methods, damping, strengths and seeds on one pair of tasks.

    accelerate launch recipes/grid.py --old_task bc5cdr --task psytar --data_dir data \\
        --results benchmarks/forgetting/bc5cdr-psytar.jsonl

Strengths are multiples of the Bayesian value N_old / (2 N_new), chosen on the development splits.
A grid that was stopped goes on where it was. The table goes beside the results, as .md.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hf_kfc.curvature import CurvatureArguments
from laboratory import (
    DataArguments,
    GridArguments,
    LearningArguments,
    RankerArguments,
    command_line,
    run_grid,
)

if __name__ == "__main__":
    command_line(
        run_grid,
        (GridArguments, RankerArguments, DataArguments, LearningArguments, CurvatureArguments),
        __doc__,
    )
