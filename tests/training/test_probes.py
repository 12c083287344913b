"""Probes in training count once, as they should, and leave everything else as it is."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny.cases import CHECKPOINTING, Case, check_run, run
from tiny.models import RANKERS
from tiny.probes import PROBED, moved, pad_candidates, probes_of
from tiny.reference import log_probabilities, reference_divergence
from tiny.trainings import assert_near, make_trainer, trained
from torch import Tensor, nn
from transformers import TrainerCallback

from hf_kfc.curvature import Outputs
from hf_kfc.errors import ConsolidationError, ProbeError
from hf_kfc.ranking.objective import ranking_forward
from hf_kfc.training.probing import ProbeOrder

CASE = Case("cnn", accumulation=4, batch_size=1, probes=True)


@pytest.mark.parametrize("model", ["bert", "cnn"])
@pytest.mark.parametrize(("accumulation", "batch_size"), [(1, 4), (4, 1), (4, 3)])
@pytest.mark.parametrize("every", [1, 2])
def test_one_process(
    model: str, accumulation: int, batch_size: int, every: int, tmp_path: Path
) -> None:
    """Every gradient, step and log is that of a dense reference; see test_gradients.py for two."""
    arguments = (("probe_every", every),)
    case = replace(
        CASE, model=model, accumulation=accumulation, batch_size=batch_size, arguments=arguments
    )
    check_run(case, [run(case, tmp_path)])


def divergence_gradients(name: str, temperature: float) -> dict[str, Tensor]:
    model = RANKERS[name]().double().eval()
    reference_divergence(model, moved(name).double().eval(), PROBED, temperature).backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("name", "dropout", "changes", "tolerance"),
    [
        ("bert", 0.0, {"bf16": True}, 0.1),
        ("cnn", 0.0, {"bf16": True}, 0.1),
        ("bert", 0.3, {}, 0.0),
        ("cnn", 0.3, {"gradient_accumulation_steps": 3}, 0.0),
        ("bert", 0.3, {CHECKPOINTING: True}, 0.0),
        ("cnn", 0.0, {"torch_compile": True, "torch_compile_backend": "eager"}, 0.0),
        ("cnn", 0.0, {"probe_temperature": 3.0}, 0.0),
    ],
    ids=[
        "bert-bf16",
        "cnn-bf16",
        "bert-dropout",
        "cnn-dropout",
        "checkpointing",
        "compiled",
        "hot",
    ],
)
def test_without_priors_the_gradient_differs_by_that_of_the_divergence(
    name: str, dropout: float, changes: dict[str, Any], tolerance: float, tmp_path: Path
) -> None:
    """The dropout of the task's passes is the same with probes, and that of the probes' is off."""
    (_, without), (_, with_probes) = (
        trained(
            tmp_path,
            (),
            RANKERS[name](dropout),
            probes=probes_of(moved(name)),
            probe_collator=pad_candidates,
            probe_weight=weight,
            probe_batch_size=len(PROBED),
            probe_held_out=0.0,
            max_steps=1,
            seed=3,
            **{"per_device_train_batch_size": 3} | changes,
        ).recorder.steps[0]
        for weight in (0.0, 2.0)
    )
    temperature = changes.get("probe_temperature", 1.0)
    for parameter, expected in divergence_gradients(name, temperature).items():
        found = with_probes[parameter] - without[parameter]
        if tolerance:
            assert (found - 2 * expected).norm() <= tolerance * (2 * expected).norm() + 1e-3
        else:
            assert_near(found, 2 * expected, parameter)


def test_weight_zero_trains_bit_for_bit_as_without_probes(tmp_path: Path) -> None:
    plain, measured = (
        trained(
            tmp_path,
            (),
            RANKERS["bert"](0.3),
            probes=probes,
            probe_collator=pad_candidates,
            probe_weight=0.0,
            forgetting_every=1,
            gradient_accumulation_steps=2,
            num_train_epochs=2,
        )
        for probes in ([], probes_of(moved("bert")))
    )
    for (_, expected), (_, found) in zip(
        plain.recorder.steps, measured.recorder.steps, strict=True
    ):
        for name, gradient in expected.items():
            assert torch.equal(found[name], gradient), name
    losses = [[e for e in t.state.log_history if "loss" in e] for t in (plain, measured)]
    assert losses[0] == losses[1]
    assert sum("forgetting" in e for e in measured.state.log_history) == 1 + len(losses[0])


def make(folder: Path, probes: Any = None, **changes: Any) -> Any:
    """A training with shuffling, dropout and AdamW."""
    defaults: dict[str, Any] = {
        "optim": "adamw_torch",
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        "num_train_epochs": 2,
        "probe_batch_size": 3,
        "forgetting_every": 2,
    }
    return make_trainer(
        folder,
        (),
        RANKERS["bert"](0.2),
        probes=probes_of(moved("bert")) if probes is None else probes,
        probe_collator=pad_candidates,
        **defaults | changes,
    )


def logged(trainer: Any, name: str) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if name in entry]


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_a_continued_training_is_the_whole_one(step: int, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1}
    whole = make(tmp_path / "whole", **saving)
    whole.train()
    assert whole.state.global_step == 6
    rest = make(tmp_path / "rest", **saving)
    torch.rand(3)
    rest.train(str(tmp_path / "whole" / f"checkpoint-{step}"))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(rest.model.state_dict()[name], value), name
    for part in ("probe_loss", "forgetting"):
        assert logged(rest, part) == logged(whole, part)
    assert [entry["step"] for entry in logged(rest, "forgetting")] == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("probes", "changes"),
    [([], {}), (probes_of(moved("bert", seed=8)), {}), (None, {"probe_weight": 2.0})],
    ids=["none", "others", "weight"],
)
def test_other_probes_are_refused_where_a_training_goes_on(
    probes: Any, changes: dict[str, Any], tmp_path: Path
) -> None:
    make(tmp_path / "whole", max_steps=1, save_strategy="steps", save_steps=1).train()
    other = make(tmp_path / "other", probes, **changes)
    with pytest.raises(ConsolidationError, match=r"was started with other .*probe"):
        other.train(str(tmp_path / "whole" / "checkpoint-1"))


class Hungry(TrainerCallback):
    """A step too many for the memory, once."""

    def __init__(self) -> None:
        self.left = iter((False, False, True))

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        if next(self.left, False):
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")


def test_an_attempt_with_smaller_batches_begins_anew(tmp_path: Path) -> None:
    trainer = make(
        tmp_path,
        auto_find_batch_size=True,
        gradient_accumulation_steps=1,
        max_steps=4,
        logging_steps=4,
        probe_held_out=0.0,
        probe_batch_size=10,
    )
    trainer.add_callback(Hungry())
    trainer.train()
    assert trainer._train_batch_size < 2
    anchor, model = moved("bert").double().eval(), RANKERS["bert"]().double().eval()
    values = []
    for parameters, _ in trainer.recorder.steps[2:]:
        model.load_state_dict(parameters, strict=False)
        values.append(reference_divergence(model, anchor, PROBED).item())
    assert len(values) == 4
    (log,) = logged(trainer, "probe_loss")
    assert log["probe_loss"] == pytest.approx(sum(values) / 4, rel=1e-4)


def test_each_earlier_task_has_its_part_of_a_step(tmp_path: Path) -> None:
    """The loss is the sum of their means; each is measured."""
    sets = [probes_of(moved("bert", seed=seed)) for seed in (4, 5)]
    alone, both = (
        make(
            tmp_path,
            probes,
            probe_held_out=held_out,
            probe_batch_size=20,
            max_steps=1,
            learning_rate=0.0,
        )
        for probes, held_out in ((sets[:1], 0.0), (sets, 0.0))
    )
    for trainer in (alone, both):
        trainer.train()
    model = RANKERS["bert"]().double().eval()
    for trainer, given in ((alone, (4,)), (both, (4, 5))):
        anchors = [moved("bert", seed=seed).double().eval() for seed in given]
        expected = sum(reference_divergence(model, a, PROBED).item() for a in anchors)
        assert logged(trainer, "probe_loss")[0]["probe_loss"] == pytest.approx(expected, rel=1e-4)
    measured = make(tmp_path, sets, max_steps=1)
    measured.train()
    start = logged(measured, "forgetting")[0]
    for name in ("forgetting", "changed_decisions"):
        of_each = [start[f"{name}_probes_{number}"] for number in (0, 1)]
        assert start[name] == pytest.approx(sum(of_each) / 2)


def test_what_is_measured_is_the_divergence_of_probes_that_are_not_trained_on(
    tmp_path: Path,
) -> None:
    probes = probes_of(moved("bert"))
    trainer = make(tmp_path, probes, probe_held_out=0.4, seed=11)
    trainer.train()
    learnt, held_out = probes.split(4, 11)
    assert not {str(row) for row in learnt.rows} & {str(row) for row in held_out.rows}
    rows = [row | {"labels": 0} for row in held_out.rows]
    anchor, model = moved("bert").double().eval(), trainer.model.double().eval()
    last = logged(trainer, "forgetting")[-1]
    expected = reference_divergence(model, anchor, rows).item()
    assert last["forgetting"] == pytest.approx(expected, rel=1e-4)
    changed = [
        log_probabilities(model, row).argmax() != log_probabilities(anchor, row).argmax()
        for row in rows
    ]
    assert last["changed_decisions"] == pytest.approx(sum(map(float, changed)) / 4)


def test_every_probe_is_trained_on_as_often_as_the_others() -> None:
    order = ProbeOrder(7, seed=3)
    steps = [order(step, 3) for step in range(7)]
    drawn = [index for step in steps for index in step]
    assert all(sorted(drawn[start : start + 7]) == list(range(7)) for start in (0, 7, 14))
    again = ProbeOrder(7, seed=3)
    assert [again(step, 3) for step in (5, 0, 2)] == [steps[step] for step in (5, 0, 2)]
    assert [ProbeOrder(7, seed=4)(step, 3) for step in range(7)] != steps


# Wrong models


def test_nothing_is_said_of_the_model_that_the_probes_are_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make(tmp_path, probes_of(RANKERS["bert"]()), max_steps=1)
    trainer.train()
    assert logged(trainer, "forgetting")[0]["forgetting"] < 1e-6
    assert not [m for m in caplog.messages if "nats" in m]


def test_a_model_that_has_learnt_since_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path, max_steps=1).train()
    (message,) = [m for m in caplog.messages if "nats" in m]
    assert "of 'probes' said of the probes, with 41 of 41 parameters moved" in message


def test_outputs_that_are_computed_otherwise_are_refused(tmp_path: Path) -> None:
    trainer = make(tmp_path, probes_of(RANKERS["bert"]()), max_steps=1)

    def halved(model: nn.Module, batch: Mapping[str, Tensor]) -> Outputs:
        outputs = ranking_forward(model, batch)
        return outputs._replace(logits=torch.where(outputs.logits > -100, 0.5, 1) * outputs.logits)

    trainer.probe_forward = halved
    with pytest.raises(ConsolidationError, match=r"says something else of them .* `probe_forward`"):
        trainer.train()


def test_another_model_is_refused(tmp_path: Path) -> None:
    trainer = make(tmp_path, probes_of(moved("cnn")), max_steps=1)
    with pytest.raises(ConsolidationError, match="are of a model with other parameters, as "):
        trainer.train()


def test_something_else_than_probes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConsolidationError, match="`probes` holds a dict; give Probes"):
        make(tmp_path, [{}])
    with pytest.raises(ConsolidationError, match="`probes` holds a int; give Probes"):
        make(tmp_path, 3)


def test_a_training_step_that_goes_past_them_is_refused(tmp_path: Path) -> None:
    trainer = make(tmp_path, max_steps=1)

    class Past(type(trainer)):  # type: ignore[misc]
        def training_step(self, model: Any, inputs: Any, *_: Any) -> Tensor:
            loss = self.compute_loss(model, inputs)
            self.accelerator.backward(loss)
            return loss.detach()

    trainer.__class__ = Past
    with pytest.raises(ConsolidationError, match="goes past the"):
        trainer.train()


# Adapters, and other things that the model may have


def test_adapters_alone_have_a_gradient(tmp_path: Path) -> None:
    """It is that of the model with its adapters; probes are those of the plain one."""
    peft = pytest.importorskip("peft")

    def adapted() -> Any:
        torch.manual_seed(1)
        config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["query", "dense"])
        wrapped = peft.get_peft_model(RANKERS["bert"](), config)
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.3)
        return wrapped

    (_, without), (_, with_probes) = (
        trained(
            tmp_path,
            (),
            adapted(),
            probes=probes_of(RANKERS["bert"]()),
            probe_collator=pad_candidates,
            probe_weight=weight,
            probe_batch_size=len(PROBED),
            probe_held_out=0.0,
            max_steps=1,
        ).recorder.steps[0]
        for weight in (0.0, 2.0)
    )
    model = adapted().double().eval()
    reference_divergence(model, RANKERS["bert"]().double().eval(), PROBED).backward()
    expected = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert with_probes.keys() == expected.keys()
    for name, gradient in expected.items():
        assert_near(with_probes[name] - without[name], 2 * gradient, name)


def with_adapter(std: float) -> Any:
    """A ranker with LoRA, which has learnt something if its B is not 0."""
    peft = pytest.importorskip("peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=2, target_modules=["query", "value"])
    model = peft.get_peft_model(RANKERS["bert"](), config)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=std)
    return model


def trained_from(folder: Path, model: Any, probes: Any, **changes: Any) -> Any:
    return trained(
        folder,
        (),
        model,
        probes=probes,
        probe_collator=pad_candidates,
        probe_held_out=0.4,
        max_steps=1,
        **changes,
    )


@pytest.mark.parametrize("merged", [False, True])
def test_probes_of_a_model_with_adapters_are_of_that_model(
    merged: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its names are those of its parts, whatever wraps them, and after a merge as well."""
    model, probes = with_adapter(1.0), probes_of(with_adapter(1.0))
    if merged:
        model = model.merge_and_unload().requires_grad_(True)
    trainer = trained_from(tmp_path, model, probes)
    assert logged(trainer, "forgetting")[0]["forgetting"] < 1e-6
    assert not [m for m in caplog.messages if "nats" in m]


def test_an_adapter_that_has_learnt_is_told_and_one_that_has_not_is_no_excuse(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The frozen weights have not moved, but what is said has: of a task learnt since."""
    probes = probes_of(RANKERS["bert"]())
    trained_from(tmp_path, with_adapter(1.0), probes)
    (message,) = [m for m in caplog.messages if "nats" in m]
    assert "with 0 of 41 parameters moved and 4 added: right if other tasks" in message
    others = probes_of(moved("bert"))
    others.anchor_digests = probes.anchor_digests
    with pytest.raises(ConsolidationError, match="says something else of them"):
        trained_from(tmp_path, with_adapter(0.0), others)


def test_a_collator_that_masks_at_random_is_refused(tmp_path: Path) -> None:
    """The anchor has said nothing of such inputs; where it has moved, nothing else would tell."""

    def masking(rows: Any) -> Any:
        batch = pad_candidates(rows)
        hidden = torch.rand(batch["input_ids"].shape) < 0.5
        return {**batch, "input_ids": batch["input_ids"].masked_fill(hidden, 1)}

    trainer = make_trainer(
        tmp_path, (), moved("bert", 0.1), probes=probes_of(moved("bert")), probe_collator=masking
    )
    with pytest.raises(ProbeError, match="another input_ids of the same examples each time"):
        trainer.train()


def test_what_was_not_measured_of_a_task_is_not_taken_from_another(tmp_path: Path) -> None:
    """Of the second none is held out: what the first has lost is not its loss."""
    few = probes_of(RANKERS["bert"](), PROBED[:2])
    trainer = make(tmp_path, [probes_of(moved("bert")), few], max_steps=1)
    trainer.train()
    assert logged(trainer, "forgetting")[0]["forgetting"] > 0.05


def test_the_model_is_in_the_modes_that_it_was_in(tmp_path: Path) -> None:
    """A module that the user keeps in evaluation mode stays so, and no other."""
    trainer = make(tmp_path, max_steps=1)
    trainer.train()
    trainer.model.train()
    trainer.model.classifier.eval()
    before = [module.training for module in trainer.model.modules()]
    trainer._probing.measure()
    trainer._probing.backward()
    assert [module.training for module in trainer.model.modules()] == before
    assert len(set(before)) == 2


def test_what_was_forgotten_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    trainer = make(tmp_path, [probes_of(moved("bert", seed=seed)) for seed in (4, 5)], max_steps=4)
    with pytest.raises(ConsolidationError, match="no forgetting was measured: train with probes"):
        trainer.plot_forgetting(tmp_path / "early.svg")
    assert not (tmp_path / "early.svg").exists()
    trainer.train()
    trainer.plot_forgetting(tmp_path / "forgetting.svg")
    assert "<svg" in (tmp_path / "forgetting.svg").read_text()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConsolidationError, match="pictures need matplotlib: pip install"):
        trainer.plot_forgetting(tmp_path / "late.svg")


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("restored", [False, True])
def test_a_budget_goes_on_where_it_was(step: int, restored: bool, tmp_path: Path) -> None:
    changes = {"save_strategy": "steps", "save_steps": 1, "forgetting_budget": 0.1}
    changes |= {"restore_callback_states_from_checkpoint": restored}
    whole = make(tmp_path / "whole", **changes)
    whole.train()
    rest = make(tmp_path / "rest", **changes)
    rest.train(str(tmp_path / "whole" / f"checkpoint-{step}"))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(rest.model.state_dict()[name], value), name
    weights = [[e["probe_weight"] for e in logged(t, "probe_loss")] for t in (whole, rest)]
    assert weights[0] == weights[1]
    assert len(set(weights[0])) >= 3
