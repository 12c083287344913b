"""Tiers 1 to 3 over all permutations of tasks, every method on the same stage.

    accelerate launch recipes/permutations.py --data_dir data --results runs/cnn.jsonl \\
        --methods none l2 ewc kfc ekfac replay:0.05 rehearsal:0.05+kfc lora --tier3_methods kfc

An experiment that was stopped goes on where it was, and takes further methods and seeds. Tables and
pictures are made of the results by recipes/report.py. Methods, with a number after a colon:

"""

from hf_kfc.curvature import CurvatureArguments
from hf_kfc.experiments import (
    METHODS,
    DataArguments,
    LearningArguments,
    PermutationArguments,
    RankerArguments,
    command_line,
    run_permutations,
)

if __name__ == "__main__":
    assert __doc__ is not None
    command_line(
        run_permutations,
        (
            PermutationArguments,
            RankerArguments,
            DataArguments,
            LearningArguments,
            CurvatureArguments,
        ),
        __doc__ + "\n".join(f"    {name:18} {part.text}" for name, part in METHODS.items()),
    )
