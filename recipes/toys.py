"""What the curvatures are, in three toy computations: numbers, and a picture of each.

    python recipes/toys.py --output_dir benchmarks/toys

Two parameters under each curvature and the Fisher of a small CNN are Figures 1 and 2 of McInerney
et al. 2021; the third shows why the Hessian is no penalty. It takes less than a minute.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from laboratory import command_line
from laboratory.toys import ToyArguments, run_toys

if __name__ == "__main__":
    command_line(run_toys, (ToyArguments,), __doc__)
