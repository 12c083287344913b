"""Each layer has the learning rate of its depth, and all follow the schedule."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from tiny.models import RANKERS, ranking_bert, ranking_cnn
from tiny.priors import make_prior
from tiny.trainings import make_trainer as make_any_trainer
from torch import nn
from transformers import TrainerCallback

from hf_kfc.errors import ConsolidationError
from laboratory.layerwise import layer_depths, split_by_depth
from laboratory.rivals import RivalArguments, RivalTrainer

DEPTHS = {
    "bert": {
        "bert.embeddings": 4,
        "bert.encoder.layer.0": 3,
        "bert.encoder.layer.1": 2,
        "bert.pooler": 1,
        "classifier": 0,
    },
    "cnn": {"embeddings": 3, "convolution": 2, "dense": 1, "classifier": 0},
}
DECAY = 0.5

make_trainer = partial(make_any_trainer, kind=RivalTrainer, settings=RivalArguments)


def expected_depths(model: str) -> dict[str, int]:
    names = [name for name, _ in RANKERS[model]().named_parameters()]
    return {n: d for n in names for layer, d in DEPTHS[model].items() if n.startswith(f"{layer}.")}


# Depths


@pytest.mark.parametrize("model", RANKERS)
def test_depths(model: str) -> None:
    expected = expected_depths(model)
    assert len(expected) == len(list(RANKERS[model]().parameters()))
    assert layer_depths(RANKERS[model]()) == expected


def test_a_list_within_a_list_and_parameters_of_the_model_itself() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))
            self.tower = nn.Module()
            self.tower.blocks = nn.ModuleList([Block(), Block()])
            self.tower.norm = nn.LayerNorm(2)

    depths = layer_depths(Model())
    assert depths["scale"] == 3
    assert {depths[f"tower.blocks.0.parts.{i}.weight"] for i in range(2)} == {2}
    assert {depths[f"tower.blocks.1.parts.{i}.weight"] for i in range(2)} == {1}
    assert depths["tower.norm.weight"] == 0


def test_lora() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=2, target_modules=["word_embeddings", "query", "dense", "classifier"]
    )
    depths = layer_depths(peft.get_peft_model(ranking_bert(), config))
    for layer, depth in DEPTHS["bert"].items():
        found = {d for name, d in depths.items() if f"base_model.model.{layer}." in name}
        assert found == {depth}, layer


# Learning rates


class Rates(TrainerCallback):
    """Keeps each parameter's learning rate and weight decay at each step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, tuple[float, float]]] = []

    def on_pre_optimizer_step(
        self, *_: Any, model: nn.Module, optimizer: Any = None, **kwargs: Any
    ) -> None:
        groups = optimizer.param_groups
        of = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
        assert len(of) == sum(len(g["params"]) for g in groups)
        self.steps.append({n: of[id(p)] for n, p in model.named_parameters() if p.requires_grad})


CHANGES: dict[str, Any] = {
    "optim": "adamw_torch",
    "weight_decay": 0.1,
    "learning_rate": 0.01,
    "lr_scheduler_type": "linear",
    "per_device_train_batch_size": 5,
    "num_train_epochs": 2,
}


def rates(folder: Path, model: str, **changes: Any) -> tuple[Any, list[dict[str, Any]]]:
    found = Rates()
    trainer = make_trainer(
        folder, [make_prior(RANKERS[model]())], RANKERS[model](), **(CHANGES | changes)
    )
    trainer.add_callback(found)
    trainer.train()
    return trainer, found.steps


@pytest.mark.parametrize("model", RANKERS)
def test_rates_follow_the_formula_and_the_schedule(model: str, tmp_path: Path) -> None:
    trainer, steps = rates(tmp_path, model, layer_decay=DECAY)
    _, plain = rates(tmp_path, model)
    depths = expected_depths(model)
    assert len(steps) == len(plain) == 4
    for index, (step, reference) in enumerate(zip(steps, plain, strict=True)):
        assert step.keys() == reference.keys() == depths.keys()
        for name, (rate, weight_decay) in step.items():
            assert rate == pytest.approx(0.01 * (1 - index / 4) * DECAY ** depths[name])
            assert weight_decay == reference[name][1]
    assert {weight_decay for _, weight_decay in steps[0].values()} == {0.0, 0.1}
    logged = [log["learning_rate"] for log in trainer.state.log_history if "loss" in log]
    assert logged == pytest.approx([0.01, 0.0075, 0.005, 0.0025])  # the head's


def test_without_decay_the_groups_are_the_trainers(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, (), ranking_bert(), **CHANGES)
    groups = trainer.create_optimizer().param_groups
    assert [group["lr"] for group in groups] == [0.01, 0.01]
    decayed = set(trainer.get_decay_parameter_names(trainer.model))
    for group, wanted in zip(groups, (True, False), strict=True):
        expected = [p for n, p in trainer.model.named_parameters() if (n in decayed) is wanted]
        assert all(a is b for a, b in zip(group["params"], expected, strict=True))


def test_steps_are_as_long_as_the_rates(tmp_path: Path) -> None:
    priors = [make_prior(ranking_cnn())]
    trainer = make_trainer(tmp_path, priors, ranking_cnn(), layer_decay=DECAY, max_steps=1)
    trainer.train()
    ((start, gradients),) = trainer.recorder.steps
    for name, parameter in trainer.model.named_parameters():
        rate = trainer.args.learning_rate * DECAY ** expected_depths("cnn")[name]
        torch.testing.assert_close(parameter.detach(), start[name] - rate * gradients[name])


def test_an_optimizer_that_is_there_is_not_split_again(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, (), ranking_cnn(), layer_decay=DECAY, max_steps=1)
    for _ in range(3):
        trainer.create_optimizer()
        found = {group["lr"] for group in trainer.optimizer.param_groups}
        assert found == {0.05 * DECAY**depth for depth in range(4)}


def test_frozen_parameters_are_in_no_group(tmp_path: Path) -> None:
    model = ranking_cnn()
    model.dense.requires_grad_(False)
    trainer = make_trainer(tmp_path, (), model, layer_decay=DECAY)
    groups = trainer.create_optimizer().param_groups
    assert {group["lr"] for group in groups} == {0.05 / 8, 0.05 / 4, 0.05}
    assert all(p.requires_grad for group in groups for p in group["params"])


def test_compiled(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        (),
        ranking_cnn(),
        layer_decay=DECAY,
        max_steps=1,
        torch_compile=True,
        torch_compile_backend="eager",
    )
    trainer.train()
    found = {group["lr"] for group in trainer.optimizer.param_groups}
    assert found == {0.05 * DECAY**depth for depth in range(4)}


# Refusals


def test_parameters_that_are_not_the_models() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)
    with pytest.raises(ConsolidationError, match=r"SGD has parameters.*layer_decay=1"):
        split_by_depth(optimizer, ranking_cnn(), DECAY)


def test_deepspeed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        Accelerator, "distributed_type", property(lambda _: DistributedType.DEEPSPEED)
    )
    with pytest.raises(ConsolidationError, match=r"learning rates of the layers.*DeepSpeed"):
        make_trainer(tmp_path, layer_decay=DECAY)
