"""Real training runs of the benchmarks: a ranker, priors of made-up tasks, and a clock."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from common import synchronize
from torch.utils.data import default_collate
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from workload import Example, cnn, encoder, ranking_examples

from hf_kfc import (
    ConsolidationArguments,
    ConsolidationPrior,
    ConsolidationTrainer,
    CurvatureArguments,
    Probes,
)

RANKERS = ("encoder", "cnn")
CANDIDATES, TOKENS = 10, 40
WARM_UP = 2
TASK_EXAMPLES, PRIOR_EXAMPLES = 500, 8
NOISE = 1e-3


def ranker(kind: str, tiny: bool) -> PreTrainedModel:
    """Make the encoder of width 384 with 3 layers, or the CNN of width 128."""
    if kind == "encoder":
        return encoder(48, vocabulary=300) if tiny else encoder(384)
    return cnn(16, 300) if tiny else cnn(128, 8000)


def examples_for(model: PreTrainedModel, count: int, tiny: bool, seed: int = 0) -> list[Example]:
    """Draw training examples of 10 candidates with 40 positions."""
    tokens = 8 if tiny else TOKENS
    return ranking_examples(count, CANDIDATES, tokens, model.config.vocab_size, seed=seed)


def make_prior(
    model: PreTrainedModel, seed: int, tiny: bool, examples_of_curvature: int = PRIOR_EXAMPLES
) -> ConsolidationPrior:
    """Make the prior of a made-up task, at an anchor near a model's parameters.

    As learning does, the anchor moves the embeddings of the task's tokens only. The curvature is
    by default of fewer examples than the task has, which changes no cost of a step.
    """
    examples = examples_for(model, TASK_EXAMPLES, tiny, seed=1 + seed)
    seen = torch.cat([example["input_ids"].flatten() for example in examples]).unique()
    anchor = deepcopy(model)
    words = anchor.get_input_embeddings().weight
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in anchor.parameters():
            noise = NOISE * torch.randn(parameter.shape, generator=draw)
            if parameter is words:
                noise = torch.zeros_like(noise).index_copy_(0, seen, noise[seen])
            parameter.add_(noise.to(parameter.device))
    arguments = CurvatureArguments(curvature_batch_size=8)
    return ConsolidationPrior.estimate(
        anchor, examples[:examples_of_curvature], default_collate, arguments, task=f"task{seed}"
    )


class Clock(TrainerCallback):
    """Notes when each optimizer step ends."""

    def __init__(self, device: str, now: Callable[[], float] = time.perf_counter) -> None:
        self.device, self.now = device, now
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        synchronize(self.device)
        self.ends.append(self.now())

    def seconds_per_step(self) -> float:
        """Return the mean from the end of the last warm-up step to that of the last step."""
        counted = self.ends[WARM_UP - 1 :]
        return (counted[-1] - counted[0]) / (len(counted) - 1)


def train(
    model: PreTrainedModel,
    examples: Sequence[Example],
    *,
    batch_size: int,
    steps: int,
    device: str,
    priors: Sequence[ConsolidationPrior] | None = None,
    probes: Probes | None = None,
    bf16: bool = False,
    now: Callable[[], float] = time.perf_counter,
    **penalty: Any,
) -> tuple[float, Trainer]:
    """Train a copy of a model for some steps, after two that are not counted.

    Args:
        model: Where to start.
        examples: Training examples.
        batch_size: Examples of a process and step.
        steps: Counted optimizer steps.
        device: Where to train.
        priors: None trains with the plain Trainer.
        probes: Of an earlier task, beside the priors.
        bf16: Train under autocast.
        now: The clock.
        penalty: Fields of ConsolidationArguments.

    Returns:
        Seconds of a step, and the trainer.
    """
    clock = Clock(device, now)
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {
            "output_dir": folder,
            "max_steps": WARM_UP + steps,
            "per_device_train_batch_size": batch_size,
            "use_cpu": device == "cpu",
            "bf16": bf16,
            "remove_unused_columns": False,
            "save_strategy": "no",
            "logging_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
        }
        common = {"train_dataset": examples, "data_collator": default_collate}
        common |= {"callbacks": [clock], "model": deepcopy(model)}
        if priors is None:
            trainer = Trainer(args=TrainingArguments(**options), **common)
        else:
            arguments = ConsolidationArguments(**options, strengths=[0.1], **penalty)
            held = {"priors": priors, "probes": probes or ()}
            trainer = ConsolidationTrainer(args=arguments, **held, **common)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return clock.seconds_per_step(), trainer
