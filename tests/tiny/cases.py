"""Training runs of rankers, and their comparison with the dense reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, TrainingArguments
from transformers.distributed import DistributedConfig

from hf_kfc.priors import ConsolidationPrior
from hf_kfc.ranking import RankingConsolidationTrainer
from hf_kfc.training import ConsolidationArguments

from .data import FOR_EVALUATION, Collator, make_examples
from .models import RANKERS
from .priors import make_prior
from .probes import PROBED, moved, pad_candidates, probes_of
from .reference import DensePenalty, Step, reference_divergence, reference_step
from .trainings import LEARNING_RATE, Recorder, arguments, assert_near, full

TRAINS_SHARDED = hasattr(PreTrainedModel, "is_distributed_loading_by_transformers")
"""Whether the Trainer trains what ``DistributedConfig`` has sharded; 5.17 would wrap it in DDP."""
CHECKPOINTING = (
    "activation_checkpointing"
    if hasattr(TrainingArguments, "activation_checkpointing")
    else "gradient_checkpointing"
)
"""The name that the training argument has in this version of transformers."""
PROBE_WEIGHT = 0.8


@dataclass(frozen=True)
class Case:
    """One training run.

    Args:
        model: Key of ``RANKERS``.
        sharded: With FSDP2.
        accumulation: Micro-batches in an optimizer step.
        batch_size: Examples in a micro-batch.
        examples: Examples in an epoch.
        epochs: Epochs.
        masked: Whether batches say which candidates are padding; without, there must be none.
        evaluated: Whether the trainer evaluates before it trains.
        probes: Whether there are probes of another model beside, all of them in a step.
        frozen: Parameters whose name starts so are frozen, though the priors know them.
        arguments: Other training arguments.
        trainer: Class of the trainer.
        settings: Class of the training arguments.
    """

    model: str = "bert"
    sharded: bool = False
    accumulation: int = 1
    batch_size: int = 2
    examples: int = 10
    epochs: int = 1
    masked: bool = True
    evaluated: bool = False
    probes: bool = False
    frozen: str = ""
    arguments: tuple[tuple[str, Any], ...] = ()
    trainer: type[RankingConsolidationTrainer] = RankingConsolidationTrainer
    settings: type[ConsolidationArguments] = ConsolidationArguments

    def __str__(self) -> str:
        wrapper = "fsdp2" if self.sharded else "plain"
        name = f"{self.model}-{wrapper}-accumulation{self.accumulation}-batch{self.batch_size}"
        flags = [
            *["unmasked"] * (not self.masked),
            *["evaluated"] * self.evaluated,
            *["probes"] * self.probes,
            *["frozen"] * bool(self.frozen),
        ]
        changes = (f"{name}={value}" for name, value in self.arguments)
        return "-".join([name, *flags, *changes])

    @property
    def damping(self) -> float:
        return 0.1

    @property
    def strengths(self) -> list[float]:
        return [0.3, 0.05]

    def freezes(self, name: str) -> bool:
        """Whether the parameter is frozen."""
        return bool(self.frozen) and name.startswith(self.frozen)

    @property
    def every(self) -> int:
        """The penalty is in every k-th optimizer step."""
        return int(dict(self.arguments).get("penalty_every", 1))

    @property
    def largest_norm(self) -> float:
        """To which gradients are clipped."""
        return float(dict(self.arguments).get("max_grad_norm", 0)) or float("inf")

    def priors(self) -> list[ConsolidationPrior]:
        """Two priors; the second leaves a layer free."""
        model = RANKERS[self.model]()
        return [
            make_prior(model, "mixed", task="first", seed=1),
            make_prior(model, "kronecker", task="second", seed=2, ignore=["classifier.*"]),
        ]

    @property
    def probes_every(self) -> int:
        """Probes are in every k-th optimizer step."""
        return int(dict(self.arguments).get("probe_every", 1))

    def penalty(self) -> DensePenalty:
        """The reference's penalty, made once for all cases that have the same."""
        return _dense_penalty(self.model)


@cache
def _dense_penalty(model: str) -> DensePenalty:
    case = Case(model)
    return DensePenalty(case.priors(), case.strengths, case.damping)


def make_trainer(
    case: Case, directory: Path
) -> tuple[RankingConsolidationTrainer, Recorder, Collator]:
    """A trainer that notes its batches and gradients."""
    args = arguments(
        directory / "run",
        case.settings,
        strengths=case.strengths,
        damping=case.damping,
        probe_weight=PROBE_WEIGHT,
        probe_batch_size=len(PROBED),
        probe_held_out=0.0,
        gradient_accumulation_steps=case.accumulation,
        per_device_train_batch_size=case.batch_size,
        num_train_epochs=case.epochs,
        **dict(case.arguments),
    )
    model = RANKERS[case.model]()
    if case.sharded:
        model.save_pretrained(directory / "model")  # by the first process alone
        dist.barrier()
        if case.model == "bert":  # the other is sharded as a whole
            model.config.base_model_fsdp_plan = {"encoder.layer.*": "free_full_weight"}
        model = type(model).from_pretrained(
            directory / "model",
            config=model.config,
            distributed_config=DistributedConfig(fsdp_size=args.world_size),
        )
        groups = [name for name, module in model.named_modules() if isinstance(module, FSDPModule)]
        layers = {"bert": ["bert.encoder.layer.0", "bert.encoder.layer.1"], "cnn": []}
        assert groups == ["", *layers[case.model]]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not case.freezes(name))
    recorder, collator = Recorder(), Collator(case.masked)
    data = make_examples(case.examples)
    trainer = case.trainer(
        model,
        args,
        priors=case.priors(),
        probes=[probes_of(moved(case.model))] if case.probes else [],
        probe_collator=pad_candidates,
        train_dataset=data,
        eval_dataset=[example | {"index": FOR_EVALUATION} for example in data[:3]],
        data_collator=collator,
        callbacks=[recorder],
    )
    return trainer, recorder, collator


def run(case: Case, directory: Path) -> dict[str, Any]:
    """Train, and say what this process saw."""
    trainer, recorder, collator = make_trainer(case, directory)
    sharded = [isinstance(p, DTensor) for p in trainer.model.parameters()]
    if case.evaluated:
        trainer.evaluate()
    trainer.train()
    assert trainer._penalty is not None
    return {
        "own_blocks": (trainer._penalty.num_own, trainer._penalty.num_blocks),
        "world_size": trainer.args.world_size,
        "wrapper": type(trainer.model_wrapped).__name__,
        "sharded": sharded,
        "steps": recorder.steps,
        "final": {n: full(p) for n, p in trainer.model.named_parameters()},
        "batches": collator.seen,
        "logs": [entry for entry in trainer.state.log_history if "loss" in entry],
    }


def windows(case: Case, ranks: Sequence[dict[str, Any]]) -> Iterator[list[list[int]]]:
    """The examples of each optimizer step: micro-batches of all processes together."""
    count = len(ranks[0]["batches"])
    per_epoch = count // case.epochs
    for epoch in range(case.epochs):
        for start in range(0, per_epoch, case.accumulation):
            stop = min(start + case.accumulation, per_epoch)
            span = slice(epoch * per_epoch + start, epoch * per_epoch + stop)
            yield [batch for rank in ranks for batch in rank["batches"][span]]


def check_run(case: Case, ranks: Sequence[dict[str, Any]]) -> None:
    """Every process had the reference's gradient, step and log at every optimizer step."""
    model, data, penalty = RANKERS[case.model](), make_examples(case.examples), case.penalty()
    anchor = moved(case.model).double() if case.probes else None
    expected = list(windows(case, ranks))
    assert expected
    for rank in ranks:
        assert len(rank["steps"]) == len(rank["logs"]) == len(expected)
    for index, window in enumerate(expected):
        parameters = ranks[0]["steps"][index][0]
        batches = [[data[i] for i in batch] for batch in window]
        factor = case.every * ((index + 1) % case.every == 0)
        weight = PROBE_WEIGHT * case.probes_every * ((index + 1) % case.probes_every == 0)
        reference = reference_step(
            model,
            parameters,
            batches,
            lambda p, k=factor: [k * value for value in penalty(p)],
            None
            if anchor is None
            else lambda m, k=weight: k * reference_divergence(m, anchor, PROBED),
        )
        trained = {n: g for n, g in reference.gradients.items() if not case.freezes(n)}
        norm = torch.stack([gradient.norm() for gradient in trained.values()]).norm()
        assert case.largest_norm == float("inf") or norm > case.largest_norm
        clipping = min(1.0, case.largest_norm / norm.item())
        for rank in ranks:
            following = [step[0] for step in rank["steps"][1:]] + [rank["final"]]
            gradients = rank["steps"][index][1]
            assert gradients.keys() == trained.keys()
            for name, gradient in gradients.items():
                assert_near(gradient, clipping * trained[name], name)
                stepped = parameters[name] - LEARNING_RATE * gradient
                assert_near(following[index][name], stepped, f"{name} after the step")
            _check_log(rank["logs"][index], reference, case)


def _check_log(log: dict[str, float], reference: Step, case: Case) -> None:
    first, second = reference.penalties
    expected = {
        "penalty_first": first,
        "penalty_second": second,
        "penalty": first + second,
        "task_loss": reference.task_loss,
        "loss": reference.task_loss + first + second + reference.probe_loss,
        **({"probe_loss": reference.probe_loss} if case.probes else {}),
    }
    for name, value in expected.items():
        assert_near(torch.tensor(log[name]), torch.tensor(value), name)
