"""How many positions of real ranking batches are padding, which the made-up data is to resemble.

python benchmarks/speed/padding.py --data_dir ../shared/data
"""

from __future__ import annotations

from common import command_line, start, write
from workload import PADDING, batches_of, padded_share

from hf_kfc import CurvatureArguments
from hf_kfc.experiments import DataArguments, RankerArguments
from hf_kfc.experiments.tiers import prepare
from hf_kfc.ranking import CandidateCollator

TASKS = ("psytar", "medmentions")


def main() -> None:
    """Count and write the results."""
    parser = command_line(__doc__)
    parser.add_argument("--data_dir", required=True, help="folder with the real corpora")
    parser.add_argument("--ranker", required=True, help="folder of an encoder")
    arguments = start(parser)
    data = DataArguments(arguments.data_dir, 600, 10, 10, num_candidates=10)
    rows = []
    for task in TASKS:
        ranker = RankerArguments(arguments.ranker, num_layers=1)
        _, tokenizer, (splits,) = prepare(ranker, 0, [(task, data)], CurvatureArguments())
        for size in (8, 32):
            batches = batches_of(splits.train, size, "cpu", CandidateCollator(tokenizer))
            shares = [padded_share(batch["attention_mask"]) for batch in batches]
            tokens = [batch["input_ids"].shape[-1] for batch in batches]
            rows.append(
                {
                    "task": task,
                    "examples in a batch": size,
                    "tokens": sum(tokens) / len(tokens),
                    "padded share": sum(shares) / len(shares),
                }
            )
    sizes = {"candidates": 10, "most tokens": ranker.max_length, "assumed": PADDING}
    write(arguments, "padding", sizes=sizes, rows=rows, goals=[])


if __name__ == "__main__":
    main()
