"""Trains models in two processes, with and without a prior; test_is_a_trainer.py looks at it."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from tiny.cases import TRAINS_SHARDED
from tiny.data import labelled, texts
from tiny.models import classifier, text_llama
from tiny.priors import prior_of
from tiny.trainings import train
from torch import distributed as dist
from transformers import PreTrainedModel, Trainer
from transformers.distributed import DistributedConfig

from hf_kfc.training import ConsolidationConfig, ConsolidationTrainer

CASES = ["averaged", "apart", "mean", *["sharded"] * TRAINS_SHARDED]


def make(case: str, folder: Path) -> PreTrainedModel:
    """A model whose loss is divided by all tokens, or is a mean over the micro-batch."""
    if case in ("averaged", "apart"):
        return text_llama()
    model: PreTrainedModel = classifier()
    if case == "sharded":
        model.save_pretrained(folder / "model")
        dist.barrier()
        model.config.base_model_fsdp_plan = {"encoder.layer.*": "free_full_weight"}
        model = type(model).from_pretrained(
            folder / "model",
            config=model.config,
            distributed_config=DistributedConfig(fsdp_size=dist.get_world_size()),
        )
    return model


def run(case: str, folder: Path) -> list[Any]:
    """The steps of the plain Trainer and of ours, and the penalties that ours has logged."""
    rows = texts() if case in ("averaged", "apart") else labelled()
    plain, ours = (
        train(
            kind,
            make(case, folder),
            rows,
            folder,
            [prior_of(classifier() if rows[0]["labels"].ndim == 0 else text_llama())],
            ConsolidationConfig(strengths=[0.7], damping=0.0),
            gradient_accumulation_steps=1 if case == "sharded" else 2,
            learning_rate=0.05,
            average_tokens_across_devices=case != "apart",
        )
        for kind in (Trainer, ConsolidationTrainer)
    )
    penalties = [log["penalty"] for log in ours.state.log_history if "penalty" in log]
    return [plain.recorder.steps, ours.recorder.steps, penalties]


def main(directory: Path) -> None:
    """Write what both processes saw, by the case."""
    results: dict[str, list[Any]] = {}
    for case in CASES:
        try:
            mine: Any = run(case, directory / case)
        except Exception:
            mine = traceback.format_exc()
        ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, mine)
        results[case] = ranks
    if dist.get_rank() == 0:
        torch.save(results, directory / "results.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
