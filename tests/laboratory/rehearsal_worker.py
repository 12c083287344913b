"""Trains on new and old examples; ``accelerate launch`` starts it for test_rehearsal.py."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from tiny.cases import TRAINS_SHARDED, Case
from tiny.cases import run as run_case
from tiny.data import Collator, make_examples
from tiny.models import ranking_cnn
from tiny.priors import make_prior
from tiny.trainings import Recorder, arguments, full
from torch import distributed as dist

from laboratory.rivals import RivalArguments, RivalTrainer

OLD = 100
"""What the numbers of old examples start with."""
NEW_EXAMPLES = make_examples(24)
OLD_EXAMPLES = [
    example | {"index": OLD + number} for number, example in enumerate(make_examples(6, seed=9))
]
STEPS = {"replay": 7, "fixed": 6, "growing": 8}
"""Optimizer steps in an epoch, of 4 examples each; the last one of ``growing`` has 2."""
LAYERWISE = [
    Case(
        "bert",
        sharded,
        accumulation=4,
        batch_size=1,
        arguments=(("layer_decay", 0.5),),
        trainer=RivalTrainer,
        settings=RivalArguments,
    )
    for sharded in (False, True)
]


def make_trainer(
    folder: Path, schedule: str = "replay", new: Any = NEW_EXAMPLES, old: Any = OLD_EXAMPLES, **more
) -> RivalTrainer:
    """A trainer with AdamW and a prior: two epochs."""
    changes: dict[str, Any] = {
        "optim": "adamw_torch",
        "learning_rate": 0.01,
        "lr_scheduler_type": "linear",
        "num_train_epochs": 2,
        "rehearsal": schedule,
    }
    return RivalTrainer(
        ranking_cnn(),
        arguments(folder, RivalArguments, **(changes | more)),
        priors=[make_prior(ranking_cnn(), "mixed")],
        train_dataset=new,
        old_dataset=old,
        data_collator=Collator(),
        callbacks=[Recorder()],
    )


def report(trainer: RivalTrainer) -> dict[str, Any]:
    """What this process saw."""
    return {
        "batches": trainer.data_collator.seen,
        "steps": trainer.state.global_step,
        "final": {name: full(p) for name, p in trainer.model.named_parameters()},
    }


def run(folder: Path, schedule: str, per_device: int) -> dict[str, Any]:
    """Train in accumulated steps of 4 examples, of all processes together."""
    trainer = make_trainer(
        folder, schedule, per_device_train_batch_size=per_device, gradient_accumulation_steps=2
    )
    trainer.train()
    return report(trainer)


def main(folder: Path) -> None:
    """Run everything and write what the processes saw, rank by rank."""
    jobs: dict[str, Any] = {
        **{name: lambda name=name: run(folder / name, name, 1) for name in STEPS},
        **{
            str(case): lambda case=case: run_case(case, folder / str(case))
            for case in LAYERWISE
            if TRAINS_SHARDED or not case.sharded
        },
    }
    results: dict[str, list[Any]] = {}
    for name, job in jobs.items():
        try:
            mine: Any = job()
        except Exception:
            mine = traceback.format_exc()  # shown by this job's test
        ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(ranks, mine)
        results[name] = ranks
    if dist.get_rank() == 0:
        torch.save(results, folder / "results.pt")
    dist.destroy_process_group()  # its threads abort a process that ends while they run


if __name__ == "__main__":
    main(Path(sys.argv[1]))
