"""Tier 1: learn a task and keep a prior of it.

    accelerate launch recipes/tier1.py
    accelerate launch recipes/tier1.py --task bc5cdr --data_dir data --output_dir runs/bc5cdr

The folder then holds a model that from_pretrained loads, and in prior/ what a later tier needs to
remember the task without its data. With --push_to_hub both go to the Hugging Face Hub too, where
they are private:

    accelerate launch recipes/tier1.py --push_to_hub --hub_model_id org/tier1
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from hf_kfc.curvature import CurvatureArguments
from laboratory import (
    DataArguments,
    LearningArguments,
    PublishArguments,
    RankerArguments,
    Tier1Arguments,
    command_line,
    run_tier1,
)

if __name__ == "__main__":
    command_line(
        run_tier1,
        (
            Tier1Arguments,
            RankerArguments,
            DataArguments,
            LearningArguments,
            CurvatureArguments,
            PublishArguments,
        ),
        __doc__,
    )
