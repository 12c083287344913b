"""What real ranking batches hold, which the made-up data is to resemble: padding and tokens.

python benchmarks/speed/batches.py --data_dir data --encoder FOLDER
"""

from __future__ import annotations

from typing import Any

import torch
from common import command_line, start, write
from training import CANDIDATES, TASK_EXAMPLES, TOKENS
from workload import PADDING, ZIPF, Example, batches_of, padded_share, ranking_examples

from hf_kfc import CurvatureArguments
from hf_kfc.ranking import CandidateCollator
from laboratory import DataArguments, RankerArguments
from laboratory.tiers import prepare

TASKS = ("psytar", "codiesp", "medmentions")
SIZE = 8


def contents(name: str, vocabulary: int, examples: list[Example], collator: Any) -> dict[str, Any]:
    """Count what the first examples of a task hold."""
    batches = batches_of(examples[:TASK_EXAMPLES], SIZE, "cpu", collator)
    kinds = torch.cat([batch["input_ids"].flatten() for batch in batches]).unique()
    return {
        "examples": name,
        "vocabulary": vocabulary,
        "positions": sum(batch["input_ids"].shape[-1] for batch in batches) / len(batches),
        "padded share": sum(padded_share(b["attention_mask"]) for b in batches) / len(batches),
        "different tokens": len(kinds),
    }


def main() -> None:
    """Count and write the results."""
    parser = command_line(__doc__)
    parser.add_argument("--data_dir", required=True, help="folder with the real corpora")
    parser.add_argument("--encoder", required=True, help="folder of an encoder")
    arguments = start(parser)
    count = 10 if arguments.tiny else 1500
    data = DataArguments(arguments.data_dir, count, 10, 10, num_candidates=CANDIDATES)
    rows = []
    for name, ranker in {
        "encoder": RankerArguments(arguments.encoder, num_layers=1),
        "CNN": RankerArguments(),
    }.items():
        for task in TASKS:
            model, tokenizer, (splits,) = prepare(ranker, 0, [(task, data)], CurvatureArguments())
            collator = CandidateCollator(tokenizer)
            examples, vocabulary = list(splits.train), model.config.vocab_size
            rows.append(contents(f"{task}, {name}", vocabulary, examples, collator))
        made_up = ranking_examples(TASK_EXAMPLES, CANDIDATES, TOKENS, vocabulary)
        rows.append(contents(f"made up, {name}", vocabulary, made_up, None))
    sizes = {
        "candidates": CANDIDATES,
        "examples": TASK_EXAMPLES,
        "examples in a batch": SIZE,
        "padding of the made-up": PADDING,
        "exponent of the made-up": ZIPF,
    }
    write(arguments, "batches", sizes=sizes, rows=rows, goals=[])


if __name__ == "__main__":
    main()
