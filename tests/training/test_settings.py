"""Where settings stand, when they are read, and that they are saved with the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny.data import labelled, pad
from tiny.models import classifier
from tiny.priors import prior_of
from tiny.trainings import train
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import HPSearchBackend

from hf_kfc.errors import ConsolidationError
from hf_kfc.training import (
    ConsolidationArguments,
    ConsolidationConfig,
    ConsolidationMixin,
    ConsolidationTrainer,
)


class Consolidated(ConsolidationMixin, Trainer):
    pass


def test_settings_stand_in_one_place(tmp_path: Path) -> None:
    with pytest.raises(ConsolidationError, match="give TrainingArguments beside `consolidation`"):
        ConsolidationTrainer(
            classifier(),
            ConsolidationArguments(str(tmp_path)),
            consolidation=ConsolidationConfig(),
        )
    with pytest.raises(ConsolidationError, match="`consolidation` is a dict; give a Consolidation"):
        ConsolidationTrainer(
            classifier(),
            TrainingArguments(str(tmp_path)),
            consolidation={"strengths": 1.0},  # type: ignore[arg-type]
        )


# Settings are read when training begins


def change_in_training(trainer: Any, **values: Any) -> float:
    for name, value in values.items():
        setattr(trainer.args, name, value)
    trainer.train()
    return float(trainer.state.log_history[0]["penalty"])


def consolidating(tmp_path: Path, beside: bool = False, **changes: Any) -> Any:
    """Its settings in the arguments, or beside them."""
    args = (TrainingArguments if beside else ConsolidationArguments)(
        str(tmp_path),
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        logging_steps=1,
        learning_rate=0.0,
        max_steps=1,
        **({} if beside else changes),
    )
    return ConsolidationTrainer(
        None,
        args,
        priors=[prior_of(classifier())],
        model_init=lambda: classifier(3),
        train_dataset=labelled(),
        data_collator=pad,
        consolidation=ConsolidationConfig(**changes) if beside else None,
    )


def test_strengths_and_damping_of_now(tmp_path: Path) -> None:
    trainer = consolidating(tmp_path, strengths=[1.0], damping=0.0)
    one = change_in_training(trainer)
    assert change_in_training(trainer, strengths=[3.0]) == pytest.approx(3 * one)
    assert change_in_training(trainer, damping=1.0) == pytest.approx(6 * one)
    assert trainer.strengths == [3.0]
    with pytest.raises(ConsolidationError, match="damping -1 is not"):
        change_in_training(trainer, damping=-1)


@pytest.mark.parametrize("beside", [False, True])
def test_a_number_set_later_is_a_strength(
    beside: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = consolidating(tmp_path, beside, strengths=[1.0], damping=0.0)
    settings: Any = trainer.consolidation if beside else trainer.args
    settings.strengths = 3.0
    trainer.train()
    assert trainer.strengths == [3.0]
    assert not caplog.text  # it has not changed while training


@pytest.mark.parametrize("beside", [False, True])
def test_a_change_while_training_is_told(
    beside: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = consolidating(tmp_path, beside, strengths=[1.0])
    trainer.train()
    assert not caplog.text

    class Changes(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            settings: Any = trainer.consolidation if beside else trainer.args
            settings.strengths = [5.0]

    trainer.add_callback(Changes())
    trainer.train()
    assert caplog.text.count("count from the next training on") == 1


def test_a_penalty_without_bounds_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    consolidating(tmp_path, strengths=[1e300]).train()
    assert "The penalty is [inf]" in caplog.text


@pytest.mark.parametrize("first", [None, 2.0, [2.0]])
@pytest.mark.parametrize("searched", [0.5, [0.5]])
@pytest.mark.parametrize("beside", [False, True])
def test_a_search_finds_strengths(first: Any, searched: Any, beside: bool, tmp_path: Path) -> None:
    trainer = consolidating(tmp_path, beside, strengths=first, damping=0.0)
    trainer.hp_search_backend = HPSearchBackend.WANDB  # a trial is what it suggests
    trainer._hp_search_setup({"strengths": searched})
    trainer.train()
    assert trainer.strengths == [0.5]
    expected = 0.5 * 0.01 * trainer.model.num_parameters()
    assert trainer.state.log_history[0]["penalty"] == pytest.approx(expected)


def test_the_settings_are_saved_with_the_model(tmp_path: Path) -> None:
    trainer = train(
        ConsolidationTrainer,
        classifier(),
        labelled(),
        tmp_path,
        [prior_of(classifier())],
        ConsolidationConfig(strengths=2, ignore=["classifier"]),
    )
    trainer.save_model()
    saved = ConsolidationConfig.from_pretrained(tmp_path)
    assert saved == ConsolidationConfig(strengths=[2], ignore=["classifier"])
    plain = train(Consolidated, classifier(), labelled(), tmp_path / "plain")
    plain.save_model()
    assert not list((tmp_path / "plain").glob("consolidation*"))
