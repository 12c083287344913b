"""Which tokens a fine-tuned model has got worse at: those of the text before, or new ones.

    python benchmarks/lm/recall.py --data_dir data --results runs/lm/spanish.jsonl \\
        --methods none average:0.5 probes:4

Needs the models that ``python -m laboratory lm --keep_models`` has kept beside its results file. A
token is *frequent* if it is one of the 150 that the texts have most often; any other one is
*recalled* if it stands earlier in its text, and otherwise *new*. *Last* words are LAMBADA's, which
can be told from the text before.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from laboratory.averaging import average_parameters
from laboratory.ledger import read_ledger
from laboratory.lm import LmArguments, LmMethod
from laboratory.lm.stage import Stage

HERE = Path(__file__).parent
FREQUENT = 150
Text = tuple[list[int], int]
"""Tokens, and how many of them at the end are the last word."""


def kinds_of(texts: list[Text]) -> dict[str, Tensor]:
    """Return which tokens after the first are of a kind, over all texts."""
    counts = Counter(token for ids, _ in texts for token in ids)
    frequent = {token for token, _ in counts.most_common(FREQUENT)}
    found: dict[str, list[bool]] = {name: [] for name in ("frequent", "recalled", "new", "last")}
    for ids, last in texts:
        for place in range(1, len(ids)):
            is_frequent, is_before = ids[place] in frequent, ids[place] in ids[:place]
            found["frequent"].append(is_frequent)
            found["recalled"].append(not is_frequent and is_before)
            found["new"].append(not is_frequent and not is_before)
            found["last"].append(place >= len(ids) - last)
    return {name: torch.tensor(own) for name, own in found.items() if any(own)}


@torch.no_grad()
def losses(stage: Stage, model: Any, texts: list[Text]) -> Tensor:
    """Return the cross entropy of every token after the first, in nats."""
    found = []
    for ids, _ in texts:
        row = torch.tensor([ids], device=model.device)
        with torch.autocast(model.device.type, torch.bfloat16):
            logits = model.train(False)(input_ids=row).logits[0, :-1]
        own = logits.float().log_softmax(-1).gather(1, row[0, 1:, None])
        found.append(-own[:, 0].cpu())
    return torch.cat(found)


def main() -> None:
    """Measure and write ``recall.json``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data_dir", required=True, help="folder of the corpora")
    parser.add_argument("--results", required=True, help="of the runs, with what they kept beside")
    parser.add_argument("--methods", nargs="+", required=True, help="whose models are read")
    parser.add_argument("--texts", type=int, default=60, help="of LAMBADA, and sampled ones")
    parser.add_argument("--output", type=Path, default=HERE / "recall.json", help="what is made")
    given = parser.parse_args()
    header, _ = read_ledger(Path(given.results))
    own = header["settings"] | {"lambada": given.texts, "choices": 0}
    stage = Stage(
        LmArguments(results=given.results, data_dir=given.data_dir, device="cpu", **own), 0
    )

    def ids_of(text: str) -> list[int]:
        return list(stage.tokenizer(text, add_special_tokens=False).input_ids)

    lambada = [
        (ids_of(line["context"]) + (word := ids_of(f" {line['continuation']}")), len(word))
        for line in stage.evaluation.lambada
    ]
    held_out = [(row["input_ids"], 0) for row in stage.probes[1].rows][: given.texts]
    sets = {"LAMBADA": lambada, "sampled": held_out}
    rows: list[dict[str, Any]] = []
    for name in ("anchor", *given.methods):
        model: Any = stage.anchor
        if name != "anchor":
            method = LmMethod.parse(name)
            folder = stage.folder / method.trained
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            shares = [1 - method.average, method.average]
            model.load_state_dict(average_parameters([stage.anchor, model], shares))
        for kind, texts in sets.items():
            values = losses(stage, model, texts)
            parts = {part: float(values[mask].mean()) for part, mask in kinds_of(texts).items()}
            rows.append({"model": name, "texts": kind, "all": float(values.mean()), **parts})
            print(rows[-1], file=sys.stderr)
    shares_of = {
        kind: {part: float(mask.float().mean()) for part, mask in kinds_of(texts).items()}
        for kind, texts in sets.items()
    }
    found = {
        "command": shlex.join(["python", *sys.argv]),
        "texts": given.texts,
        "shares of tokens": shares_of,
        "rows": rows,
    }
    given.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
