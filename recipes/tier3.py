"""Tier 3: learn a third task without forgetting the first two.

From a model on the Hugging Face Hub that tier2.py made; its card leads to the priors of all tiers:

    accelerate launch recipes/tier3.py --model org/tier2 --push_to_hub

From folders, the priors have to be named:

    accelerate launch recipes/tier3.py --model runs/tier2 --priors runs/tier1/prior runs/tier2/prior
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
    Tier3Arguments,
    command_line,
    run_tier3,
)

if __name__ == "__main__":
    command_line(
        run_tier3,
        (
            Tier3Arguments,
            RankerArguments,
            DataArguments,
            LearningArguments,
            CurvatureArguments,
            PublishArguments,
        ),
        __doc__,
    )
