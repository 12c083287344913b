"""The mixin over the trainers of other libraries: their examples run, and the penalty is 2λFΔ."""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from tiny.reference import DensePenalty
from tiny.trainings import Recorder, assert_near
from transformers import DataCollatorWithPadding

from hf_kfc import Probes
from hf_kfc.errors import ProbeError

EXAMPLES = Path(__file__).parents[2] / "examples" / "trainers"
LIBRARIES = {
    "sft": "trl",
    "dpo": "trl",
    "embeddings": "sentence_transformers",
    "cross_encoder": "sentence_transformers",
    "seq2seq": "transformers",
}
SCRIPTS = [*((name, {}) for name in LIBRARIES if name != "sft")] + [
    ("sft", {"way": way}) for way in ("packing", "padding-free", "completion", "assistant")
]
IN_THE_MODEL: dict[str, Callable[[str], str]] = {
    "embeddings": lambda name: name.replace("bert.", "0.model.", 1),
    "cross_encoder": lambda name: f"0.model.{name}",
}
"""The model's name of a parameter, by the prior's."""
STEPS: dict[str, Any] = {
    "use_cpu": True,
    "disable_tqdm": True,
    "save_strategy": "no",
    "logging_steps": 1,
    "optim": "sgd",
    "learning_rate": 0.05,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "max_steps": 2,
    "per_device_train_batch_size": 2,
}


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Any]:
    """Imports an example; what a library that is absent would have shown is skipped."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.syspath_prepend(EXAMPLES)

    def load(name: str) -> Any:
        pytest.importorskip(LIBRARIES[name], reason='pip install "hf_kfc[trainers]"')
        return importlib.import_module(name)

    return load


def named(way: tuple[str, dict[str, str]]) -> str:
    return "-".join([way[0], *way[1].values()])


def new_model(module: Any) -> Any:
    """The model that the example begins with."""
    name = module.__name__
    if name == "cross_encoder":
        return module.load()
    if name == "embeddings":
        return module.load(module.encoder())
    model = module.encoder_decoder() if name == "seq2seq" else module.decoder()
    model.save_pretrained(f"base-{name}")  # TRL's trainers read the model's folder again
    return type(model).from_pretrained(f"base-{name}")


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("way", SCRIPTS, ids=named)
def test_the_gradient_of_a_prior_is_2_lambda_f_delta(
    way: tuple[str, dict[str, str]], accumulation: int, example: Callable[[str], Any]
) -> None:
    name, more = way
    module = example(name)
    prior = module.old_prior(module.encoder() if name == "embeddings" else new_model(module))
    settings = STEPS | {"gradient_accumulation_steps": accumulation} | more

    def step(priors: Any) -> tuple[Any, Any]:
        model = new_model(module)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():  # away from the anchor, where the penalty is 0
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
        trainer = module.make_trainer(model, priors, **settings)
        trainer.recorder = Recorder()
        trainer.add_callback(trainer.recorder)
        trainer.train()
        return trainer.recorder.steps[0], trainer

    (start, task), plain = step([])
    (again, both), ours = step([prior])
    held = {n: IN_THE_MODEL.get(name, str)(n) for n in prior.anchor}
    if name == "embeddings":  # the old head is gone
        held = {n: own for n, own in held.items() if n != own}
        assert prior.anchor.keys() - held.keys() == {"classifier.weight", "classifier.bias"}
    values = {n: start[own].double().requires_grad_() for n, own in held.items()}
    blocks = tuple(b for b in prior.curvature.blocks if b.shapes.keys() <= held.keys())
    covered: Any = SimpleNamespace(curvature=SimpleNamespace(blocks=blocks), anchor=prior.anchor)
    (penalty,) = DensePenalty([covered], [0.5], damping=0.1)(values)
    penalty.backward()
    assert penalty > 1e-3
    # T5's loss is a mean over the micro-batch, which the Trainer alone multiplies by their number.
    too_much = accumulation if name == "seq2seq" else 1
    for theirs, own in held.items():
        expected = values[theirs].grad
        assert expected is not None and torch.equal(start[own], again[own])
        assert_near(both[own] - task.get(own, torch.zeros(())) / too_much, expected, own)
    losses, logged = (
        next(log for log in trainer.state.log_history if "loss" in log) for trainer in (plain, ours)
    )
    assert logged["penalty"] == pytest.approx(float(penalty), rel=1e-4)
    assert logged["task_loss"] == pytest.approx(losses["loss"] / too_much, rel=1e-3)


def test_a_preference_trainer_takes_probes_with_a_collator_that_pads(
    example: Callable[[str], Any],
) -> None:
    module = example("dpo")
    from trl import DPOConfig  # noqa: PLC0415 - an optional dependency

    model, tokenizer = new_model(module), module.tokenizer()
    pad = DataCollatorWithPadding(tokenizer)
    rows = [dict(tokenizer(row["prompt"])) for row in module.ROWS[:8]]
    probes = Probes.from_dataset(model, rows, pad)

    def train(**more: Any) -> Any:
        trainer = module.ConsolidatedDPOTrainer(
            model=model,
            args=DPOConfig("runs", report_to="none", bf16=False, **STEPS),
            train_dataset=Dataset.from_list(module.ROWS),
            processing_class=tokenizer,
            probes=probes,
            **more,
        )
        trainer.train()
        return trainer

    with pytest.raises(ProbeError, match=r"that only pads, .*, by `probe_collator=` of a trainer"):
        train()
    logs = train(probe_collator=pad).state.log_history
    assert [log["probe_loss"] > 0 for log in logs if "probe_loss" in log] == [False, True]


@pytest.mark.parametrize("name", LIBRARIES)
def test_an_example_is_short_and_runs_as_it_stands(
    name: str, example: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    example(name)
    script = EXAMPLES / f"{name}.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) < 80
    monkeypatch.setattr(sys, "argv", [str(script)])
    runpy.run_path(str(script), run_name="__main__")
    assert "penalty" in capsys.readouterr().out


def test_every_example_is_run_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*LIBRARIES, "material"}
