"""Tier 2: learn a new task without forgetting the old one.

With no argument, tier 1 is done on the spot, then the new task is learnt with no method, EWC,
EKFAC and KFC side by side:

    accelerate launch recipes/tier2.py

From a model and a prior that tier1.py made, without the old task's data; both by folder, or by
name on the Hugging Face Hub:

    accelerate launch recipes/tier2.py --model runs/tier1 --priors runs/tier1/prior
    accelerate launch recipes/tier2.py --model org/tier1 --priors org/tier1-kfc --push_to_hub

On two processes of a CPU:

    accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no \\
        --dynamo_backend no recipes/tier2.py
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
    Tier2Arguments,
    command_line,
    run_tier2,
)

if __name__ == "__main__":
    command_line(
        run_tier2,
        (
            Tier2Arguments,
            RankerArguments,
            DataArguments,
            LearningArguments,
            CurvatureArguments,
            PublishArguments,
        ),
        __doc__,
    )
