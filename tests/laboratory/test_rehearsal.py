"""Old examples among the new ones: which, in what order, and that training goes on as it should."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from launching import launch_two
from rehearsal_worker import (
    LAYERWISE,
    NEW_EXAMPLES,
    OLD,
    OLD_EXAMPLES,
    STEPS,
    make_trainer,
    report,
    run,
)
from tiny.cases import TRAINS_SHARDED
from tiny.models import ranking_bert, ranking_cnn
from tiny.reference import DensePenalty, reference_step
from tiny.trainings import LEARNING_RATE, assert_near

from hf_kfc.errors import ConsolidationError
from laboratory.layerwise import layer_depths
from laboratory.rehearsal import RehearsalSampler, keep_part

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
    sampler = RehearsalSampler(21, 5, "replay", step_size=2, seed=3)
    olds = []
    for epoch in range(5):
        drawn = order(sampler, epoch)
        assert len(drawn) == 26  # eleven steps of new examples, two of old ones
        kinds = [index >= 21 for index in drawn]
        assert kinds == ([False] * 10 + [True] * 2) * 2 + [False] * 2
        new, old = by_kind(drawn, 21)
        assert sorted(new[:21]) == list(range(21))
        assert new[21] == new[0]  # the last step is filled up
        olds += old
    passes = [olds[start : start + 5] for start in range(0, 20, 5)]
    assert all(sorted(found) == [21, 22, 23, 24, 25] for found in passes)
    assert len({tuple(found) for found in passes}) > 1


@pytest.mark.parametrize(("num_new", "num_old"), [(20, 3), (20, 40), (21, 7), (2, 3)])
def test_fixed(num_new: int, num_old: int) -> None:
    sampler = RehearsalSampler(num_new, num_old, "fixed", seed=1)
    wanted = round(num_new / 2)
    seen: Counter[int] = Counter()
    left_out = []
    for epoch in range(num_new):
        new, old = by_kind(order(sampler, epoch), num_new)
        assert (len(new), len(old)) == (num_new - wanted, wanted)
        assert len(set(new)) == len(new)
        left_out.append(frozenset(range(num_new)) - set(new))
        seen.update(new + old)
        counts = [seen[num_new + index] for index in range(num_old)]
        assert max(counts) - min(counts) <= 1
    assert {seen[index] for index in range(num_new)} == {num_new - wanted}
    assert all(a != b for a, b in pairwise(left_out))


def test_growing() -> None:
    sampler = RehearsalSampler(20, 7, "growing")
    orders = [order(sampler, epoch) for epoch in range(3)]
    assert all(sorted(drawn) == list(range(27)) for drawn in orders)
    assert len({tuple(drawn) for drawn in orders}) == 3
    assert all(max(by_kind(drawn[:20], 20)[1], default=0) for drawn in orders)  # they are mixed


@pytest.mark.parametrize("schedule", STEPS)
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
    ("schedule", "num_new", "expected"),
    [
        ("replay", 6, [2, 5, 1, 3, 4, 8, 0]),
        ("fixed", 5, [1, 4, 5, 2, 7]),
        ("growing", 5, [4, 0, 5, 6, 2, 7, 3, 1]),
    ],
)
def test_the_order_is_the_same_in_every_version(
    schedule: str, num_new: int, expected: list[int]
) -> None:
    """Results of an earlier version can be made again."""
    assert order(RehearsalSampler(num_new, 3, schedule, seed=42), 1) == expected


def test_sampler_refusals() -> None:
    for counts in ((0, 3), (3, 0)):
        with pytest.raises(ConsolidationError, match=r"\d new and \d old examples; give some"):
            RehearsalSampler(*counts, "fixed")
    with pytest.raises(ConsolidationError, match=r"8 new examples, 2 in each step.*batch size"):
        RehearsalSampler(8, 3, "replay", step_size=2)
    with pytest.raises(ConsolidationError, match=r"1 new examples.*use another rehearsal"):
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
            assert (len(set(new)), len(old)) == (12, 12)
        else:
            assert sorted(new) == list(range(24))
        if schedule == "growing":
            assert sorted(old) == list(range(OLD, OLD + 6))
        if schedule == "replay":
            kinds = [{index >= OLD for index in step} for step in epoch]
            assert kinds == [{False}] * 5 + [{True}, {False}]
            assert len(old) == 4
    assert steps[:count] != steps[count:]


@pytest.mark.parametrize("schedule", STEPS)
@pytest.mark.parametrize(("accumulation", "batch_size"), [(1, 4), (4, 1), (2, 2)])
def test_steps(schedule: str, accumulation: int, batch_size: int, tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        schedule,
        gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=batch_size,
    )
    trainer.train()
    assert trainer.state.max_steps == 2 * STEPS[schedule]
    assert trainer.state.num_train_epochs == trainer.state.epoch == 2
    check_steps(steps_of([report(trainer)], schedule, accumulation), schedule)


def test_max_steps_and_an_incomplete_step(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, "replay", NEW_EXAMPLES[:23], max_steps=8, per_device_train_batch_size=4
    )
    trainer.train()
    assert (trainer.state.global_step, trainer.state.num_train_epochs) == (8, 2)
    seen = trainer.data_collator.seen
    kinds = [{i >= OLD for i in batch} for batch in seen[:7]]
    assert kinds == [{False}] * 5 + [{True}, {False}]
    assert seen[6][3] == seen[0][0]
    assert {len(batch) for batch in seen} == {4}


@pytest.mark.parametrize("schedule", STEPS)
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
    assert trainer.strengths == [30 / (2 * 24)]
    trainer.train()
    assert trainer.train_dataset is NEW_EXAMPLES


# Two processes


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    return launch_two(WORKER, tmp_path_factory.mktemp("rehearsal"))


@pytest.mark.parametrize("schedule", STEPS)
def test_two_processes(schedule: str, two_processes: dict[str, list[Any]], tmp_path: Path) -> None:
    ranks = two_processes[schedule]
    assert not any(isinstance(rank, str) for rank in ranks), ranks
    alone = run(tmp_path, schedule, 2)
    steps, expected = steps_of(ranks, schedule, 2), steps_of([alone], schedule, 2)
    check_steps(steps, schedule)
    assert [sorted(step) for step in steps] == [sorted(step) for step in expected]
    for rank in ranks:
        for name, value in rank["final"].items():
            torch.testing.assert_close(value, alone["final"][name], rtol=1e-4, atol=1e-5)


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


def test_a_replay_that_never_comes_is_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, "replay", per_device_train_batch_size=24)
    with pytest.raises(ConsolidationError, match=r"24 new examples, 24 in each step"):
        trainer.train()


# Keeping a part


@pytest.mark.parametrize(("share", "count"), [(0.5, 12), (1.0, 24), (0.001, 1), (0.2, 5)])
def test_keep_part(share: float, count: int) -> None:
    kept = keep_part(NEW_EXAMPLES, share, seed=1)
    numbers = [example["index"] for example in kept]
    assert len(set(numbers)) == count
    assert numbers == sorted(numbers)
    assert kept == keep_part(NEW_EXAMPLES, share, seed=1)
    if count < 24:
        assert any(keep_part(NEW_EXAMPLES, share, seed) != kept for seed in range(5))


def test_without_old_examples_the_loader_is_the_trainers(tmp_path: Path) -> None:
    loader = make_trainer(tmp_path, old=None).get_train_dataloader()
    assert not isinstance(loader.batch_sampler.sampler, RehearsalSampler)
    loader = make_trainer(tmp_path, per_device_train_batch_size=4).get_train_dataloader()
    assert isinstance(loader.batch_sampler.sampler, RehearsalSampler)
