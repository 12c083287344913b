"""A continued run is the uninterrupted one, or is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny.data import Collator, make_examples
from tiny.models import ranking_bert
from tiny.priors import make_prior
from tiny.trainings import arguments
from torch import Tensor
from transformers import Trainer

from hf_kfc.errors import ConsolidationError
from hf_kfc.hub import Source
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.ranking import RankingConsolidationTrainer
from hf_kfc.ranking.trainer import RankingTrainer


def priors(task: str = "old", seed: int = 0) -> list[ConsolidationPrior]:
    return [make_prior(ranking_bert(), "mixed", task=task, seed=seed)]


def make_trainer(
    folder: Path,
    given: Sequence[ConsolidationPrior],
    kind: Any = RankingConsolidationTrainer,
    **new: Any,
) -> Any:
    """Dropout, shuffling, AdamW and a schedule: six steps and a half epoch to resume in."""
    changes: dict[str, Any] = {
        "optim": "adamw_torch",
        "lr_scheduler_type": "linear",
        "save_strategy": "steps",
        "save_steps": 1,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        "num_train_epochs": 2,
    }
    train_dataset = new.pop("train_dataset", None) or make_examples()
    args = arguments(folder, **(changes | new))
    return kind(
        ranking_bert(dropout=0.2),
        args,
        train_dataset=train_dataset,
        data_collator=Collator(),
        **({} if kind is RankingTrainer else {"priors": given}),
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    trainer = make_trainer(tmp_path_factory.mktemp("finished"), priors())
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def without_priors(tmp_path_factory: pytest.TempPathFactory) -> dict[type[Trainer], Path]:
    """A checkpoint of a run without priors, by the trainer that wrote it."""
    checkpoints = {}
    for kind in (RankingConsolidationTrainer, RankingTrainer):
        folder = tmp_path_factory.mktemp(kind.__name__)
        make_trainer(folder, (), kind, max_steps=1).train()
        checkpoints[kind] = folder / "checkpoint-1"
    return checkpoints


def checkpoint(trainer: Any, step: int) -> Path:
    return Path(trainer.args.output_dir) / f"checkpoint-{step}"


def optimizer_tensors(trainer: Any) -> list[Tensor]:
    state = trainer.optimizer.state_dict()["state"]
    return [value for entry in state.values() for value in entry.values()]


@pytest.mark.parametrize("step", [1, 3, 4], ids=["in_epoch_1", "between", "in_epoch_2"])
def test_bit_identical(step: int, finished: Any, tmp_path: Path) -> None:
    assert finished.state.global_step == 6
    trainer = make_trainer(tmp_path, priors())
    torch.rand(3)  # the random numbers must come from the checkpoint
    trainer.train(resume_from_checkpoint=str(checkpoint(finished, step)))
    assert trainer.state.global_step == 6
    for name, value in finished.model.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[name], value), name
    for found, expected in zip(
        optimizer_tensors(trainer), optimizer_tensors(finished), strict=True
    ):
        assert torch.equal(found, expected)
    logs = [entry for entry in trainer.state.log_history if "penalty" in entry]
    assert logs == [entry for entry in finished.state.log_history if "penalty" in entry]


@pytest.mark.parametrize("step", [2, 3])
def test_bit_identical_with_the_penalty_in_every_other_step(step: int, tmp_path: Path) -> None:
    whole = make_trainer(tmp_path / "whole", priors(), penalty_every=2, max_steps=4)
    whole.train()
    rest = make_trainer(tmp_path / "rest", priors(), penalty_every=2, max_steps=4)
    rest.train(resume_from_checkpoint=str(checkpoint(whole, step)))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(rest.model.state_dict()[name], value), name
    penalties = [entry["penalty"] for entry in rest.state.log_history if "penalty" in entry]
    assert [value > 0 for value in penalties] == [False, True, False, True]


def test_a_checkpoint_from_before_the_penalty_could_be_left_out(tmp_path: Path) -> None:
    make_trainer(tmp_path, priors(), max_steps=1).train()
    file = tmp_path / "checkpoint-1" / "trainer_state.json"
    state = json.loads(file.read_text())
    del state["stateful_callbacks"]["ConsolidationState"]["attributes"]["identity"]["penalty_every"]
    file.write_text(json.dumps(state))
    trainer = make_trainer(tmp_path / "more", priors(), max_steps=2)
    trainer.train(str(tmp_path / "checkpoint-1"))
    assert trainer.state.global_step == 2


def test_the_last_checkpoint_and_restored_callbacks(finished: Any) -> None:
    trainer = make_trainer(
        Path(finished.args.output_dir), priors(), restore_callback_states_from_checkpoint=True
    )
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6


@pytest.mark.parametrize("form", [str, Path])
@pytest.mark.parametrize(
    ("given", "changes"),
    [
        (priors(seed=7), {}),
        (priors(task="other"), {}),
        (priors() * 2, {}),
        ([], {}),
        (priors(), {"strengths": [0.31]}),
        (priors(), {"damping": 0.2}),
        (priors(), {"penalty_every": 2}),
    ],
    ids=[
        "other_prior",
        "other_task",
        "one_more",
        "no_priors",
        "other_strength",
        "other_damping",
        "other_steps",
    ],
)
def test_refusals(
    given: list[ConsolidationPrior],
    changes: dict[str, Any],
    form: Any,
    finished: Any,
    tmp_path: Path,
) -> None:
    trainer = make_trainer(tmp_path, given, **changes)
    with pytest.raises(
        ConsolidationError, match=r"priors of: old\).*resume with the same ones or start anew"
    ):
        trainer.train(resume_from_checkpoint=form(checkpoint(finished, 3)))
    assert trainer.state.global_step == 0


@pytest.mark.parametrize(
    ("other", "changes"),
    [
        ("data", {"train_dataset": make_examples(seed=3)}),
        ("data", {"train_dataset": make_examples(9)}),
        ("seed", {"seed": 7}),
        ("seed", {"data_seed": 7}),
        ("sampling", {"train_sampling_strategy": "sequential"}),
        ("penalty_dtype", {"penalty_dtype": "bfloat16"}),
        ("strengths", {"strengths": [0.7]}),
    ],
)
def test_other_examples_to_come_and_settings_are_refused(
    other: str, changes: dict[str, Any], finished: Any, tmp_path: Path
) -> None:
    trainer = make_trainer(tmp_path, priors(), **changes)
    with pytest.raises(ConsolidationError, match=rf"was started with other {other} \("):
        trainer.train(resume_from_checkpoint=str(checkpoint(finished, 3)))


def with_identity(identity: dict[str, Any]) -> str:
    attributes = {"attributes": {"identity": identity}}
    return json.dumps({"stateful_callbacks": {"ConsolidationState": attributes}})


@pytest.mark.parametrize(
    "text",
    [
        *("{", "\udcff", "[]", '{"stateful_callbacks": []}', "[" * 10**5),
        *map(with_identity, ({"priors": 3}, {"priors": [3]}, {"priors": [{}]}, {"priors": None})),
    ],
)
def test_a_damaged_state_is_refused(text: str, finished: Any, tmp_path: Path) -> None:
    damaged = tmp_path / "checkpoint-3"
    shutil.copytree(checkpoint(finished, 3), damaged)
    (damaged / "trainer_state.json").write_text(text, "utf-8", "surrogateescape")
    with pytest.raises(ConsolidationError, match=r"trainer_state.json is damaged.*start anew"):
        make_trainer(tmp_path, priors()).train(str(damaged))


def test_other_sizes_of_a_step_are_told(
    finished: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "max_steps": 4}
    for size, changes in (("", kept), ("2", kept | {"gradient_accumulation_steps": 2})):
        trainer = make_trainer(tmp_path / f"size{size}", priors(), **changes)
        trainer.train(resume_from_checkpoint=str(checkpoint(finished, 3)))
        told = [m for m in caplog.messages if "examples in an optimizer step" in m]
        assert len(told) == (1 if size else 0)
    assert "was started with 4 examples in an optimizer step and goes on with 2" in told[0]


class Noisy(list[Any]):
    """Examples that are other ones each time, as under augmentation."""

    def __getitem__(self, index: Any) -> Any:
        return super().__getitem__(index) | {"noise": torch.rand(2), "picture": object()}


def test_data_that_change_from_reading_to_reading_tell_their_length(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"train_dataset": Noisy(make_examples()), "max_steps": 1}
    make_trainer(tmp_path, priors(), **changes).train()
    trainer = make_trainer(tmp_path / "more", priors(), **changes | {"max_steps": 2})
    trainer.train(str(tmp_path / "checkpoint-1"))
    assert trainer.state.global_step == 2


def test_where_a_prior_came_from_is_kept_and_may_change(tmp_path: Path) -> None:
    (published,) = priors()
    published.source = Source("org/prior", "0123456789" * 4)
    make_trainer(tmp_path / "one", [published], max_steps=1).train()
    state = json.loads((tmp_path / "one" / "checkpoint-1" / "trainer_state.json").read_text())
    identity = state["stateful_callbacks"]["ConsolidationState"]["attributes"]["identity"]
    assert identity["priors"][0]["source"] == f"org/prior@{'0123456789' * 4}"
    trainer = make_trainer(tmp_path / "two", priors(), max_steps=2)
    trainer.train(str(tmp_path / "one" / "checkpoint-1"))
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("kind", [RankingConsolidationTrainer, RankingTrainer])
def test_checkpoint_of_a_run_without_priors(
    kind: type[Trainer], without_priors: dict[type[Trainer], Path], tmp_path: Path
) -> None:
    with pytest.raises(ConsolidationError, match=r"priors of: none\).*start anew"):
        make_trainer(tmp_path, priors()).train(str(without_priors[kind]))
    trainer = make_trainer(tmp_path, (), max_steps=2)
    trainer.train(str(without_priors[kind]))
    assert trainer.state.global_step == 2
