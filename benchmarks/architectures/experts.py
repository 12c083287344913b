"""What the curvature of fused experts costs: a stack of products, or diagonals.

    python benchmarks/architectures/experts.py

A mixture of experts of made-up weights and texts. Seconds are those of the process on the CPU, each
the least of two rounds; ``plain`` is a forward and backward pass of the same batches with all
gradients. ``by example`` is how experts without a rule have their diagonal. Writes experts.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.utils.data import default_collate
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from hf_kfc import CurvatureArguments
from hf_kfc.curvature import estimate_curvature

BATCH, ROUNDS = 8, 2
SIZES: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 192,
    "moe_intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 48,
    "num_experts": 16,
    "num_experts_per_tok": 4,
}


TINY = {"vocab_size": 50, "hidden_size": 16, "moe_intermediate_size": 8, "head_dim": 4}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="toy sizes; nothing is written")
    tiny = parser.parse_args().tiny
    sizes, examples, tokens = (SIZES | TINY, BATCH, 4) if tiny else (SIZES, 48, 64)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes)).eval()
    ids = torch.randint(3, sizes["vocab_size"], (examples, tokens))
    data = [{"input_ids": row, "labels": row} for row in ids]

    def plain() -> None:
        for rows in ids.split(BATCH):
            model.zero_grad(set_to_none=True)
            model(input_ids=rows, labels=rows).loss.backward()
        model.zero_grad(set_to_none=True)

    def estimate(kind: str, *, rule: bool = True) -> Callable[[], None]:
        def run() -> None:
            for module in model.modules():
                if hasattr(module, "_is_expert_parallel"):
                    module._is_expert_parallel = not rule  # experts of many processes have no rule
            arguments = CurvatureArguments(curvature=kind, curvature_batch_size=BATCH)
            estimate_curvature(model, data, default_collate, arguments)

        return run

    work = {
        "plain": plain,
        "Kronecker, a stack": estimate("kronecker"),
        "diagonal": estimate("diagonal"),
        "Kronecker, experts by example": estimate("kronecker", rule=False),
    }
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, own in work.items():
            begin = time.process_time()
            own()
            seconds[name].append(time.process_time() - begin)
    least = {name: min(own) for name, own in seconds.items()}
    found = {
        "command": "python benchmarks/architectures/experts.py",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "sizes": sizes | {"examples": examples, "tokens": tokens, "batch": BATCH},
        "seconds": seconds,
        "over plain": {name: round(own / least["plain"], 2) for name, own in least.items()},
    }
    if not tiny:
        path = Path(__file__).with_suffix(".json")
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found["over plain"], indent=1))


if __name__ == "__main__":
    sys.exit(main())
