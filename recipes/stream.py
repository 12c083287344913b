"""A model that is updated every period with that period's data alone, by every method.

    accelerate launch recipes/stream.py --data_dir data --results runs/stream.jsonl \\
        --train_examples 12000 --validation_examples 3000 --test_examples 6000

A task's documents are cut into periods in the order of their identifiers (MedMentions' are PubMed's
and grow with time). A stream that was stopped goes on where it was, and takes further methods and
seeds. Tables and pictures are made of the results by recipes/report.py. Methods, with a number
after a colon:

"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hf_kfc.curvature import CurvatureArguments
from laboratory import (
    DataArguments,
    LearningArguments,
    RankerArguments,
    StreamArguments,
    command_line,
    methods_help,
    run_stream,
)

if __name__ == "__main__":
    command_line(
        run_stream,
        (
            StreamArguments,
            RankerArguments,
            DataArguments,
            LearningArguments,
            CurvatureArguments,
        ),
        f"{__doc__}{methods_help()}",
    )
