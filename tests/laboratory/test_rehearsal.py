"""Old examples among the new ones: which, in what order, and that training goes on as it should."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from launching import launch_two
from rehearsal_worker import (
    LAYERWISE,
    NEW_EXAMPLES,
    OLD,
    OLD_EXAMPLES,
    SCHEDULES,
    STEPS,
    make_trainer,
    report,
    run,
)
from tiny.cases import TRAINS_SHARDED
from tiny.data import make_examples
from tiny.models import ranking_bert, ranking_cnn
from tiny.reference import DensePenalty, reference_step
from tiny.trainings import LEARNING_RATE, assert_near
from torch.utils.data import IterableDataset
from transformers import HfArgumentParser

from hf_kfc.errors import ConsolidationError
from laboratory.layerwise import layer_depths
from laboratory.rehearsal import RehearsalSampler, keep_part
from laboratory.rivals import RivalArguments

WORKER = Path(__file__).with_name("rehearsal_worker.py")


def order(sampler: RehearsalSampler, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    drawn = list(sampler)
    assert len(drawn) == len(sampler)
    return drawn


def by_kind(drawn: list[int], num_new: int) -> tuple[list[int], list[int]]:
    return [i for i in drawn if i < num_new], [i for i in drawn if i >= num_new]


# The sampler


def test_replay() -> None:
    sampler = RehearsalSampler(
        9, 5, "replay", step_size=2, replay_every=2, replay_batches=1, seed=3
    )
    olds = []
    for epoch in range(5):
        drawn = order(sampler, epoch)
        assert len(drawn) == 14  # five steps of new examples, two of old ones
        kinds = [index >= 9 for index in drawn]
        assert kinds == [False] * 4 + [True] * 2 + [False] * 4 + [True] * 2 + [False] * 2
        new, old = by_kind(drawn, 9)
        assert sorted(new[:9]) == list(range(9))
        assert new[9] == new[0]  # the last step is filled up
        olds += old
    passes = [olds[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(found) == [9, 10, 11, 12, 13] for found in passes)
    assert len({tuple(found) for found in passes}) > 1


def test_several_batches_in_a_replay_and_a_step_larger_than_the_data() -> None:
    sampler = RehearsalSampler(3, 2, "replay", step_size=7, replay_every=1, replay_batches=2)
    new, old = by_kind(order(sampler, 0), 3)
    assert len(new) == 7 and len(old) == 14
    assert new[:6] == new[:3] * 2 and new[6] == new[0]
    assert all(set(old[start : start + 2]) == {3, 4} for start in range(0, 14, 2))


@pytest.mark.parametrize(("share", "num_old"), [(0.5, 3), (0.25, 40), (0.01, 3), (0.99, 7)])
def test_fixed(share: float, num_old: int) -> None:
    sampler = RehearsalSampler(20, num_old, "fixed", old_share=share, seed=1)
    wanted = {0.5: 10, 0.25: 5, 0.01: 1, 0.99: 19}[share]
    seen: Counter[int] = Counter()
    left_out = []
    for epoch in range(20):
        new, old = by_kind(order(sampler, epoch), 20)
        assert (len(new), len(old)) == (20 - wanted, wanted)
        assert len(set(new)) == len(new)
        left_out.append(frozenset(range(20)) - set(new))
        seen.update(new + old)
        counts = [seen[20 + index] for index in range(num_old)]
        assert max(counts) - min(counts) <= 1
    assert {seen[index] for index in range(20)} == {20 - wanted}
    assert all(a != b for a, b in pairwise(left_out))


def test_growing() -> None:
    sampler = RehearsalSampler(20, 7, "growing")
    orders = [order(sampler, epoch) for epoch in range(3)]
    assert all(sorted(drawn) == list(range(27)) for drawn in orders)
    assert len({tuple(drawn) for drawn in orders}) == 3
    assert all(max(by_kind(drawn[:20], 20)[1], default=0) for drawn in orders)  # they are mixed


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_function_of_seed_and_epoch(schedule: str) -> None:
    def make(seed: int) -> RehearsalSampler:
        return RehearsalSampler(20, 8, schedule, step_size=2, seed=seed)

    one, other, second_seed = make(1), make(1), make(2)
    for epoch in (4, 0, 2):  # in any order
        torch.rand(3)
        assert order(one, epoch) == list(one) == order(other, epoch)
        assert order(one, epoch) != order(second_seed, epoch)
    assert order(one, 0) != order(one, 1)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("replay", [2, 4, 5, 1, 3, 7, 0]),
        ("fixed", [1, 4, 5, 2, 7]),
        ("growing", [4, 0, 5, 6, 2, 7, 3, 1]),
    ],
)
def test_the_order_is_the_same_in_every_version(schedule: str, expected: list[int]) -> None:
    """A checkpoint of an earlier version goes on as it was."""
    sampler = RehearsalSampler(5, 3, schedule, replay_every=2, seed=42)
    assert order(sampler, 1) == expected


def test_sampler_refusals() -> None:
    for counts in ((0, 3), (3, 0)):
        with pytest.raises(ConsolidationError, match=r"\d new and \d old examples; give some"):
            RehearsalSampler(*counts)
    with pytest.raises(ConsolidationError, match=r"8 new examples, 2 in each step.*replay_every"):
        RehearsalSampler(8, 3, "replay", step_size=2)
    with pytest.raises(ConsolidationError, match=r"1 new examples.*use another `rehearsal`"):
        RehearsalSampler(1, 3, "fixed")
    with pytest.raises(ConsolidationError, match=r"'none' is not known.*replay, fixed, growing"):
        RehearsalSampler(8, 3, "none")


# In the trainer


def steps_of(ranks: list[dict[str, Any]], schedule: str, accumulation: int) -> list[list[int]]:
    """The examples of each optimizer step, of all processes."""
    per_epoch = len(ranks[0]["batches"]) // 2
    steps = []
    for epoch in range(2):
        of_epoch = [rank["batches"][epoch * per_epoch :][:per_epoch] for rank in ranks]
        for start in range(0, per_epoch, accumulation):
            batches = [batch for rank in of_epoch for batch in rank[start : start + accumulation]]
            steps.append([index for batch in batches for index in batch])
    assert len(steps) == 2 * STEPS[schedule] == ranks[0]["steps"]
    return steps


def check_steps(steps: list[list[int]], schedule: str) -> None:
    """Each epoch has the examples that the schedule says."""
    count = STEPS[schedule]
    for epoch in (steps[:count], steps[count:]):
        new = [index for step in epoch for index in step if index < OLD]
        old = [index for step in epoch for index in step if index >= OLD]
        if schedule == "fixed":
            assert (len(set(new)), len(old)) == (12, 4)
        else:
            assert sorted(new) == list(range(16))
        if schedule == "growing":
            assert sorted(old) == list(range(OLD, OLD + 6))
        if schedule == "replay":
            kinds = [{index >= OLD for index in step} for step in epoch]
            assert kinds == [{False}, {False}, {True}] * 2
            assert len(old) == 8
    assert steps[:count] != steps[count:]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("accumulation", "batch_size"), [(1, 4), (4, 1), (2, 2)])
def test_steps(schedule: str, accumulation: int, batch_size: int, tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        schedule,
        gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=batch_size,
    )
    result = trainer.train()
    assert trainer.state.max_steps == 2 * STEPS[schedule]
    assert trainer.state.num_train_epochs == trainer.state.epoch == 2
    check_steps(steps_of([report(trainer)], schedule, accumulation), schedule)
    examples = {"replay": 24, "fixed": 16, "growing": 22}[schedule]
    runtime = result.metrics["train_runtime"]
    assert result.metrics["train_samples_per_second"] * runtime == pytest.approx(
        2 * examples, rel=0.1, abs=1
    )


def test_max_steps_and_an_incomplete_step(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, "replay", NEW_EXAMPLES[:15], max_steps=7, per_device_train_batch_size=4
    )
    trainer.train()
    assert (trainer.state.global_step, trainer.state.num_train_epochs) == (7, 2)
    seen = trainer.data_collator.seen
    assert [{i >= OLD for i in batch} for batch in seen[:6]] == [{False}, {False}, {True}] * 2
    assert seen[4][3] == seen[0][0]
    assert {len(batch) for batch in seen} == {4}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_with_the_penalty(schedule: str, tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        schedule,
        optim="sgd",
        lr_scheduler_type="constant",
        learning_rate=LEARNING_RATE,
        gradient_accumulation_steps=2,
        per_device_train_batch_size=2,
        num_train_epochs=1,
    )
    trainer.train()
    (recorder,) = [c for c in trainer.callback_handler.callbacks if hasattr(c, "steps")]
    examples = {example["index"]: example for example in [*NEW_EXAMPLES, *OLD_EXAMPLES]}
    penalty, seen = DensePenalty(trainer.priors, [0.3], 0.1), trainer.data_collator.seen
    assert len(recorder.steps) == STEPS[schedule]
    for number, (parameters, gradients) in enumerate(recorder.steps):
        batches = [[examples[i] for i in batch] for batch in seen[2 * number :][:2]]
        reference = reference_step(ranking_cnn(), parameters, batches, penalty)
        for name, gradient in gradients.items():
            assert_near(gradient, reference.gradients[name], name)


def test_the_new_task_stays_what_it_is(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, strengths=None, per_device_train_batch_size=4)
    assert trainer.strengths == [30 / (2 * 16)]
    trainer.train()
    assert trainer.train_dataset is NEW_EXAMPLES


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("offset", [-1, 0, 2], ids=["in_epoch_1", "between", "in_epoch_2"])
def test_resume(schedule: str, offset: int, tmp_path: Path) -> None:
    step = STEPS[schedule] + offset
    changes: dict[str, Any] = {
        "dropout": 0.2,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
    }
    whole = make_trainer(
        tmp_path / "1", schedule, save_strategy="steps", save_steps=step, **changes
    )
    whole.train()
    trainer = make_trainer(tmp_path / "2", schedule, **changes)
    torch.rand(3)
    trainer.train(str(tmp_path / "1" / f"checkpoint-{step}"))
    seen = trainer.data_collator.seen
    assert seen == whole.data_collator.seen[-len(seen) :]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[name], value), name


def test_only_the_same_rehearsal_is_continued(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"max_steps": 1, "per_device_train_batch_size": 4}
    folder = tmp_path / "replay"
    make_trainer(folder, save_strategy="steps", save_steps=1, **changes).train()
    checkpoint = str(folder / "checkpoint-1")
    for schedule, more in (
        ("replay", {"replay_every": 3}),
        ("replay", {"old": OLD_EXAMPLES[:5]}),
        ("replay", {"old": None}),
        ("growing", {}),
    ):
        trainer = make_trainer(tmp_path / "other", schedule, **(changes | more))
        with pytest.raises(ConsolidationError, match=r"other .*rehearsal.*start anew"):
            trainer.train(checkpoint)
    make_trainer(tmp_path / "same", old_share=0.1, **changes).train(checkpoint)


# Two processes


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    return launch_two(WORKER, tmp_path_factory.mktemp("rehearsal"))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_two_processes(schedule: str, two_processes: dict[str, list[Any]], tmp_path: Path) -> None:
    ranks = two_processes[schedule]
    assert not any(isinstance(rank, str) for rank in ranks), ranks
    wholes = [rank["whole"] for rank in ranks]
    alone = run(tmp_path, schedule, 2)["whole"]
    steps, expected = steps_of(wholes, schedule, 2), steps_of([alone], schedule, 2)
    check_steps(steps, schedule)
    assert [sorted(step) for step in steps] == [sorted(step) for step in expected]
    for whole in wholes:
        for name, value in whole["final"].items():
            torch.testing.assert_close(value, alone["final"][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_resume_in_two_processes(schedule: str, two_processes: dict[str, list[Any]]) -> None:
    for rank in two_processes[schedule]:
        assert not isinstance(rank, str), rank
        whole, continued = rank["whole"], rank["continued"]
        seen = continued["batches"]
        assert seen == whole["batches"][-len(seen) :]
        assert continued["steps"] == whole["steps"]
        for name, value in whole["final"].items():
            assert torch.equal(continued["final"][name], value), name


@pytest.mark.parametrize("case", LAYERWISE, ids=str)
def test_layers_have_their_rates_in_two_processes(
    case: Any, two_processes: dict[str, list[Any]]
) -> None:
    if case.sharded and not TRAINS_SHARDED:
        # Never with the versions of constraints.txt; see TRAINS_SHARDED.
        pytest.skip("the Trainer of this transformers wraps a sharded model in DDP")
    depths = layer_depths(ranking_bert())
    for rank in two_processes[str(case)]:
        assert not isinstance(rank, str), rank
        following = [step[0] for step in rank["steps"][1:]] + [rank["final"]]
        for (start, gradients), after in zip(rank["steps"], following, strict=True):
            for name, gradient in gradients.items():
                stepped = start[name] - LEARNING_RATE * 0.5 ** depths[name] * gradient
                assert_near(after[name], stepped, name)


# Data sets


def as_dataset(examples: list[dict[str, Any]]) -> datasets.Dataset:
    return datasets.Dataset.from_list(examples)


def mark_old(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {**batch, "index": [OLD + index for index in batch["index"]]}


@pytest.mark.parametrize(
    ("new", "old"),
    [
        (as_dataset(NEW_EXAMPLES), as_dataset(OLD_EXAMPLES)),
        (as_dataset(NEW_EXAMPLES), OLD_EXAMPLES),
        (as_dataset(NEW_EXAMPLES), as_dataset(make_examples(6, seed=9)).with_transform(mark_old)),
    ],
    ids=["datasets", "dataset_and_list", "transform"],
)
def test_kinds_of_data_sets(new: Any, old: Any, tmp_path: Path) -> None:
    for folder, given in (("lists", (NEW_EXAMPLES, OLD_EXAMPLES)), ("others", (new, old))):
        trainer = make_trainer(tmp_path / folder, "growing", *given, per_device_train_batch_size=4)
        trainer.train()
        if folder == "lists":
            expected = report(trainer)
    found = report(trainer)
    assert found["batches"] == expected["batches"]
    assert all(torch.equal(v, expected["final"][name]) for name, v in found["final"].items())


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return chain(OLD_EXAMPLES)


@pytest.mark.parametrize(
    ("new", "old", "told"),
    [
        (NEW_EXAMPLES, [], "old_dataset is empty"),
        (NEW_EXAMPLES, Stream(), "old_dataset is Stream.*map-style"),
        (NEW_EXAMPLES, as_dataset(OLD_EXAMPLES).to_iterable_dataset(), "is IterableDataset"),
        (None, OLD_EXAMPLES, "train_dataset is NoneType.*map-style"),
        (
            as_dataset(NEW_EXAMPLES),
            as_dataset(OLD_EXAMPLES)
            .remove_columns("labels")
            .cast_column("index", datasets.Value("int32")),
            "differ in the columns index, labels; give both the same",
        ),
    ],
)
def test_data_sets_refused(new: Any, old: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConsolidationError, match=told):
        make_trainer(tmp_path, "growing", new, old, max_steps=1)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train_sampling_strategy": "group_by_length"}, "train_sampling_strategy='group_by"),
        ({"train_sampling_strategy": "sequential"}, "train_sampling_strategy='sequential'"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last would break"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches would break"),
        ({"per_device_train_batch_size": 16}, "16 new examples, 16 in each step.*`replay_every`"),
    ],
)
def test_settings_refused(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(ConsolidationError, match=told):
        make_trainer(tmp_path, "replay", **changes)
    make_trainer(tmp_path, "replay", old=None, **changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rehearsal", "none"),
        ("replay_every", 0),
        ("replay_batches", -1),
        ("old_share", 0.0),
        ("old_share", 1.0),
        ("old_share", float("nan")),
    ],
)
def test_arguments_refused(name: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(ConsolidationError, match=f"{name} .* is not .*; correct `{name}`"):
        make_trainer(tmp_path, "replay", **{name: value})


# Keeping a part


@pytest.mark.parametrize(("share", "count"), [(0.5, 8), (1.0, 16), (0.001, 1), (0.2, 3)])
def test_keep_part(share: float, count: int) -> None:
    kept = keep_part(NEW_EXAMPLES, share, seed=1)
    numbers = [example["index"] for example in kept]
    assert len(set(numbers)) == count
    assert numbers == sorted(numbers)
    assert kept == keep_part(NEW_EXAMPLES, share, seed=1)
    assert as_dataset(kept).to_list() == keep_part(as_dataset(NEW_EXAMPLES), share, 1).to_list()
    if count < 16:
        assert any(keep_part(NEW_EXAMPLES, share, seed) != kept for seed in range(5))


def test_keep_part_refusals() -> None:
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ConsolidationError, match=r"share .* is not above 0"):
            keep_part(NEW_EXAMPLES, share)
    with pytest.raises(ConsolidationError, match="is empty"):
        keep_part([], 0.5)


def test_without_old_examples_the_loader_is_the_trainers(tmp_path: Path) -> None:
    loader = make_trainer(tmp_path, old=None).get_train_dataloader()
    assert not isinstance(loader.batch_sampler.sampler, RehearsalSampler)
    loader = make_trainer(tmp_path, per_device_train_batch_size=4).get_train_dataloader()
    assert isinstance(loader.batch_sampler.sampler, RehearsalSampler)


def parse(*words: str) -> RivalArguments:
    (args,) = HfArgumentParser(RivalArguments).parse_args_into_dataclasses(["--use_cpu", *words])
    assert isinstance(args, RivalArguments)
    return args


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "--rehearsal growing --replay_every 3 --replay_batches 2 --old_share 0.3"
    args = parse("--output_dir", str(tmp_path), *words.split(), "--layer_decay", "0.4")
    assert (args.rehearsal, args.replay_every, args.replay_batches) == ("growing", 3, 2)
    assert (args.old_share, args.layer_decay) == (0.3, 0.4)
    plain = parse("--output_dir", str(tmp_path))
    assert (plain.rehearsal, plain.replay_every, plain.replay_batches) == ("fixed", 5, 1)
    assert (plain.old_share, plain.layer_decay) == (0.5, 1.0)
    with pytest.raises(SystemExit):
        parse("--help")
    assert capsys.readouterr().out.count("old_dataset") == 4
