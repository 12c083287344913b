"""Tiers 1 to 3 over all permutations of tasks, every method on the same stage.

    accelerate launch recipes/permutations.py --data_dir data --results runs/cnn.jsonl \\
        --methods none l2 ewc kfc ekfac replay:0.05 rehearsal:0.05+kfc lora --tier3_methods kfc

An experiment that was stopped goes on where it was, and takes further methods and seeds. Tables and
pictures are made of the results by recipes/report.py. Methods, with a number after a colon:

"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hf_kfc.curvature import CurvatureArguments
from laboratory import (
    DataArguments,
    LearningArguments,
    PermutationArguments,
    RankerArguments,
    command_line,
    methods_help,
    run_permutations,
)

if __name__ == "__main__":
    command_line(
        run_permutations,
        (
            PermutationArguments,
            RankerArguments,
            DataArguments,
            LearningArguments,
            CurvatureArguments,
        ),
        f"{__doc__}{methods_help()}",
    )
