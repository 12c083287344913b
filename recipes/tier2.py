"""Tier 2: learn a new task without forgetting the old one.

With no argument, tier 1 is done on the spot, then the new task is learnt with no method, EWC,
EKFAC and KFC side by side:

    accelerate launch recipes/tier2.py

From a model and a prior that tier1.py made, without the old task's data:

    accelerate launch recipes/tier2.py --ranker runs/tier1 --priors runs/tier1/prior
"""

from hf_kfc.curvature import CurvatureArguments
from hf_kfc.experiments import (
    DataArguments,
    LearningArguments,
    RankerArguments,
    Tier2Arguments,
    command_line,
    run_tier2,
)

if __name__ == "__main__":
    command_line(
        run_tier2,
        (Tier2Arguments, RankerArguments, DataArguments, LearningArguments, CurvatureArguments),
        __doc__,
    )
