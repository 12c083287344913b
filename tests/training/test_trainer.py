"""What the trainer adds to training, leaves alone in evaluation and logs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny.cases import CHECKPOINTING
from tiny.data import Collator
from tiny.models import RANKERS, ranking_bert, ranking_cnn
from tiny.priors import make_prior
from tiny.reference import DensePenalty, reference_step, reference_task_loss
from tiny.trainings import DATA, HELD_OUT, assert_near, make_trainer, trained
from torch import Tensor, nn
from transformers import Trainer

from hf_kfc.priors import ConsolidationPrior
from hf_kfc.ranking import RankingConsolidationTrainer
from hf_kfc.ranking.trainer import RankingTrainer
from hf_kfc.training.penalty import _LayerPenalty

# The gradient: see test_gradients.py for accumulation and processes


def penalty_gradients(
    model: nn.Module, priors: Sequence[ConsolidationPrior], strengths: Sequence[float]
) -> dict[str, Tensor]:
    named = dict(model.double().named_parameters())
    total = torch.stack(DensePenalty(priors, strengths, 0.1)(named)).sum()
    return dict(zip(named, torch.autograd.grad(total, list(named.values())), strict=True))


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("bert", {"bf16": True}),
        ("cnn", {"bf16": True}),
        ("bert", {CHECKPOINTING: True}),
        ("cnn", {"torch_compile": True, "torch_compile_backend": "eager"}),
    ],
    ids=["bert-bf16", "cnn-bf16", "bert-checkpointing", "cnn-compiled"],
)
def test_the_penalty_is_the_same_under(model: str, changes: dict[str, Any], tmp_path: Path) -> None:
    priors = [make_prior(RANKERS[model](), "mixed")]
    (_, without), (_, with_penalty) = (
        trained(
            tmp_path,
            priors,
            RANKERS[model](),
            strengths=[strength],
            max_steps=1,
            gradient_accumulation_steps=3,
            per_device_train_batch_size=2,
            **changes,
        ).recorder.steps[0]
        for strength in (0.0, 0.3)
    )
    for name, expected in penalty_gradients(RANKERS[model](), priors, [0.3]).items():
        assert_near(with_penalty[name] - without[name], expected, name)


@pytest.mark.parametrize("data_collator", [None, Collator(masked=False)], ids=["mask", "no_mask"])
@pytest.mark.parametrize("kind", [RankingTrainer, RankingConsolidationTrainer])
def test_without_priors_it_is_plain_training(
    kind: type[Trainer], data_collator: Any, tmp_path: Path
) -> None:
    trainer = trained(
        tmp_path,
        (),
        ranking_bert(),
        kind,
        data_collator,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=10,
        num_train_epochs=1,
    )
    ((parameters, gradients),) = trainer.recorder.steps
    reference = reference_step(
        ranking_bert(), parameters, [[e] for e in DATA], lambda _: [torch.zeros(())]
    )
    for name, gradient in gradients.items():
        assert_near(gradient, reference.gradients[name], name)
    (log,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert_near(torch.tensor(log["loss"]), torch.tensor(reference.task_loss), "loss")
    assert not any("penalty" in name or "task" in name for name in log)


# Evaluation


@pytest.mark.parametrize("model", RANKERS)
def test_no_penalty_in_evaluation(model: str, tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        [make_prior(RANKERS[model]())],
        RANKERS[model](),
        per_device_eval_batch_size=3,
        per_device_train_batch_size=4,
    )
    for train_first in (False, True):
        if train_first:
            trainer.train()
        reference = RANKERS[model]().double().eval()
        reference.load_state_dict(trainer.model.state_dict())
        expected = reference_task_loss(reference, HELD_OUT)
        metrics = trainer.evaluate()
        assert_near(torch.tensor(metrics["eval_loss"]), expected.detach(), "eval_loss")
        assert not any("penalty" in name for name in metrics)


def test_evaluation_is_the_plain_trainers(tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "per_device_eval_batch_size": 1,
        "data_collator": Collator(masked=False),
    }
    ours = make_trainer(
        tmp_path, [make_prior(ranking_bert())], ranking_bert(), **changes
    ).evaluate()
    plain = make_trainer(tmp_path, (), ranking_bert(), Trainer, **changes).evaluate()
    assert ours["eval_loss"] == plain["eval_loss"]


def test_prediction_step_is_unaffected(tmp_path: Path) -> None:
    batch = Collator()(HELD_OUT)
    with_prior = make_trainer(tmp_path, [make_prior(ranking_bert())], ranking_bert())
    with_prior.model.train()
    loss, logits, labels = with_prior.prediction_step(with_prior.model, batch, False)
    plain = make_trainer(tmp_path, (), ranking_bert(), RankingTrainer)
    expected = plain.prediction_step(plain.model, batch, False)
    for found, wanted in zip((loss, logits, labels), expected, strict=True):
        assert torch.equal(found, wanted)
    offered = batch["candidate_mask"]
    assert not offered.all()
    assert (logits[~offered] == torch.finfo(logits.dtype).min).all()
    assert (logits[offered] > -100).all()


# Logs


def logged(trainer: Any) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def check_windows(
    trainer: Any, logs: list[dict[str, float]], steps: Sequence[Any], penalty: DensePenalty
) -> None:
    """Each log is the mean over its two optimizer steps."""
    for log, index in zip(logs, range(0, len(steps) - 1, 2), strict=True):
        window = steps[index : index + 2]
        values = torch.stack([torch.stack(penalty(parameters)) for parameters, _ in window])
        assert_near(torch.tensor(log["penalty"]), values.sum(1).mean(), "penalty")
        for task, value in zip(("first", "second"), values.mean(0), strict=True):
            assert_near(torch.tensor(log[f"penalty_{task}"]), value, task)
        assert log["task_loss"] + log["penalty"] == pytest.approx(log["loss"], abs=1e-9)
        assert log["task_loss"] > 0


def test_logs_are_means_over_their_window(tmp_path: Path) -> None:
    priors = [
        make_prior(ranking_cnn(), task="first"),
        make_prior(ranking_cnn(), "diagonal", task="second"),
    ]
    penalty = DensePenalty(priors, [0.3, 0.1], 0.1)
    trainer = make_trainer(
        tmp_path,
        priors,
        strengths=[0.3, 0.1],
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=1,
    )
    for _ in range(2):  # the fifth step of the first training belongs to no log of the second
        trainer.recorder.steps.clear()
        trainer.train()
        assert len(trainer.recorder.steps) == 5
        check_windows(trainer, logged(trainer), trainer.recorder.steps, penalty)
    assert not any(
        "penalty" in name
        for entry in trainer.state.log_history
        if "loss" not in entry
        for name in entry
    )


def test_tasks_of_one_name_are_numbered(tmp_path: Path) -> None:
    priors = [make_prior(ranking_cnn(), task=task, seed=i) for i, task in enumerate("aba")]
    trainer = trained(tmp_path, priors, max_steps=1)
    (log,) = logged(trainer)
    names = {name for name in log if name.startswith("penalty_")}
    assert names == {"penalty_a_0", "penalty_b", "penalty_a_2"}
    assert sum(log[name] for name in names) == pytest.approx(log["penalty"])


def test_a_step_without_the_penalty_says_so_in_the_log(tmp_path: Path) -> None:
    trainer = trained(tmp_path, [make_prior(ranking_cnn())], max_steps=4, penalty_every=3)
    penalties = [log["penalty"] for log in logged(trainer)]
    assert [value > 0 for value in penalties] == [False, False, True, False]
    assert all(log["loss"] - log["task_loss"] == log["penalty"] for log in logged(trainer))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_who_multiplies_what_is_logged(
    dtype: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prior = make_prior(ranking_cnn())
    with caplog.at_level("INFO", logger="hf_kfc.training.trainer"):
        trained(tmp_path, [prior, prior], max_steps=2, penalty_dtype=dtype)
    count = 2 * len(prior.curvature.blocks)
    assert caplog.messages == [
        f"Process 0 multiplies {count} of the priors' {count} blocks, in {dtype}."
    ]


def test_bfloat16_products_are_a_choice(tmp_path: Path) -> None:
    """The gradient is near the exact one, and not the same."""
    without, exact, rounded = (
        trained(
            tmp_path,
            [make_prior(ranking_cnn())],
            max_steps=1,
            strengths=[strength],
            penalty_dtype=dtype,
        ).recorder.steps[0][1]
        for strength, dtype in ((0.0, "float32"), (5.0, "float32"), (5.0, "bfloat16"))
    )
    for name, gradient in exact.items():
        penalty = (gradient - without[name]).norm()
        assert 1e-5 * penalty < (rounded[name] - gradient).norm() < 0.01 * penalty, name


def test_the_loss_is_scaled_for_float16(tmp_path: Path) -> None:
    """The gradient scaler of fp16, which is to be divided out before the step."""
    trainer = make_trainer(tmp_path, [make_prior(ranking_cnn())], max_steps=1)
    plain = trained(tmp_path, [make_prior(ranking_cnn())], max_steps=1).recorder.steps[0][1]
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    trainer.accelerator.scaler = scaler
    trainer.train()
    for name, gradient in trainer.recorder.steps[0][1].items():
        assert_near(gradient, 64 * plain[name], name)


@pytest.mark.parametrize(("damping", "warnings"), [(0.5, 0), (0.1, 1)])
def test_a_merged_prior_wants_the_damping_it_was_merged_for(
    damping: float, warnings: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    priors = [make_prior(ranking_cnn(), seed=seed, task=str(seed)) for seed in (1, 2)]
    merged = ConsolidationPrior.merge(priors, rank=1, damping=0.5)
    with caplog.at_level("WARNING", logger="hf_kfc.training.trainer"):
        make_trainer(tmp_path, [merged], damping=damping)
    assert [m for m in caplog.messages if "was merged for damping 0.5" in m] == (
        caplog.messages[:warnings]
    )
    assert len(caplog.messages) == warnings


def test_embeddings_are_penalised_last_and_layers_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the backward pass: an embedding's gradient comes when the activations are gone.

    The layers' do not wait, so that DDP can send each as soon as the model's own is there.
    """
    order, backward = [], _LayerPenalty.backward

    def noted(ctx: Any, *upstream: Tensor) -> Any:
        is_embedding = ctx.forms[0][1] == model.embeddings.weight.shape
        order.append("embedding" if is_embedding else "layer")
        return backward(ctx, *upstream)

    monkeypatch.setattr(_LayerPenalty, "backward", staticmethod(noted))
    model = ranking_cnn()
    model.convolution.register_full_backward_hook(lambda *_: order.append("model"))
    prior = make_prior(ranking_cnn())
    trained(tmp_path, [prior], model, max_steps=1)
    assert order == ["layer"] * (len(prior.curvature.blocks) - 1) + ["model", "embedding"]
