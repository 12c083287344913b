"""From raw files to a ready data set: examples with candidates, their counts and a card.

    python recipes/prepare.py --task medmentions --data_dir data --output_dir prepared/medmentions
    python recipes/prepare.py --corpus pubtator --output_dir prepared/mine \\
        --files train=train.txt validation=dev.txt test=test.txt ontology=names.tsv

datasets.load_dataset("prepared/mine") then gives the splits. With --push_to_hub org/name they are
published too, privately, unless a licence forbids it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from laboratory import command_line
from laboratory.prepare import PrepareArguments, run_prepare

if __name__ == "__main__":
    command_line(run_prepare, (PrepareArguments,), __doc__)
