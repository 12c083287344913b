"""Trains a causal language model in two processes, with and without a prior."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from text_models import gradients, llama, prior_of, texts, train
from torch import distributed as dist
from transformers import Trainer

from hf_kfc.training import ConsolidationConfig, ConsolidationTrainer


def run(averaged: bool, folder: Path) -> list[Any]:
    """Gradients of the plain Trainer and of ours."""
    config = ConsolidationConfig(strengths=[0.7], damping=0.0)
    return [
        gradients(
            train(
                kind,
                llama(),
                texts(),
                folder,
                [prior_of(llama())],
                config,
                gradient_accumulation_steps=2,
                average_tokens_across_devices=averaged,
            )
        )
        for kind in (Trainer, ConsolidationTrainer)
    ]


def main(directory: Path) -> None:
    """Write what both processes saw, by whether tokens were averaged over both."""
    results: dict[str, list[Any]] = {}
    for averaged in (True, False):
        try:
            mine: Any = run(averaged, directory / str(averaged))
        except Exception:
            mine = traceback.format_exc()
        ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, mine)
        results[str(averaged)] = ranks
    if dist.get_rank() == 0:
        torch.save(results, directory / "results.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
