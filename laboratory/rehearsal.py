"""Rehearsal: kept examples of old tasks among those of the new one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from math import ceil
from typing import Any

import datasets
from torch.utils.data import ConcatDataset, IterableDataset, Sampler
from transformers import TrainingArguments

from hf_kfc.errors import ConsolidationError

__all__ = ["SCHEDULES", "RehearsalSampler", "join_datasets", "keep_part"]

SCHEDULES = ("replay", "fixed", "growing")


class RehearsalSampler(Sampler[int]):
    """The order of an epoch over the data set [new examples, old examples].

    - ``replay``, experience replay (de Masson d'Autume et al. 2019, who replay once in many
      batches): the new task in random order, and after every m batches of it n batches of old
      examples. A batch is one optimizer step: each is of purely new or purely old examples.
    - ``fixed``, rehearsal (Robins 1995) at the cost of plain fine-tuning: N = ``num_new`` examples,
      of which p·N, rounded, are old and the others new, shuffled. The new ones are the next of a
      fixed random circle: all are seen equally often, and others are left out in each epoch.
    - ``growing``, training on everything that was kept: all new and all old examples, shuffled.

    Old examples come from an endless sequence of passes through all of them, each in a new order,
    that goes on from epoch to epoch: none is repeated before every other one was used. All is a
    function of seed and epoch alone, so that processes agree and a continued run goes on as it was.

    Args:
        num_new: Examples of the new task; their indices come first.
        num_old: Old examples; their indices follow.
        schedule: One of the three.
        step_size: Examples in an optimizer step, of all processes and accumulated micro-batches.
        replay_every: m.
        replay_batches: n.
        old_share: p.
        seed: Of all random orders.

    Raises:
        ConsolidationError: There are too few examples to rehearse old ones among new ones.
    """

    def __init__(
        self,
        num_new: int,
        num_old: int,
        schedule: str = "fixed",
        *,
        step_size: int = 1,
        replay_every: int = 5,
        replay_batches: int = 1,
        old_share: float = 0.5,
        seed: int = 0,
    ) -> None:
        self.num_new, self.num_old, self.schedule = num_new, num_old, schedule
        self.step_size, self.replay_every = step_size, replay_every
        self.replay_batches, self.old_share = replay_batches, old_share
        self.seed, self.epoch = seed, 0
        if num_new < 1 or num_old < 1:
            raise ConsolidationError(
                f"rehearsal was given {num_new} new and {num_old} old examples; give some of both"
            )
        if schedule not in SCHEDULES:
            raise ConsolidationError(
                f"rehearsal '{schedule}' is not known; use one of {', '.join(SCHEDULES)}"
            )
        self._new, self._old = self._counts()
        if not self._old:
            raise ConsolidationError(
                f"an epoch over {num_new} new examples, {step_size} in each step, would have no "
                f"old one under rehearsal '{schedule}'; lower `replay_every` or the batch size, or "
                "use another `rehearsal`"
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch.

        Args:
            epoch: Counted from 0.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        return self._new + self._old

    def __iter__(self) -> Iterator[int]:
        new, old = self._draw_new(), self._draw_old()
        if self.schedule == "replay":
            return self._alternate(new, old)
        both = new + old
        random.Random(f"rehearsal:{self.seed}:both:{self.epoch}").shuffle(both)
        return iter(both)

    def _counts(self) -> tuple[int, int]:
        """New and old examples in an epoch."""
        if self.schedule == "replay":
            steps = ceil(self.num_new / self.step_size)
            replays = steps // self.replay_every
            return steps * self.step_size, replays * self.replay_batches * self.step_size
        if self.schedule == "fixed":
            old = min(max(round(self.old_share * self.num_new), 1), self.num_new - 1)
            return self.num_new - old, old
        return self.num_new, self.num_old

    def _draw_new(self) -> list[int]:
        if self.schedule == "fixed":
            order, start = self._shuffled("new", self.num_new, 0), self.epoch * self._new
        else:
            order, start = self._shuffled("new", self.num_new, self.epoch), 0
        # Round and round: the last step under replay is filled up from the start of the epoch's own
        # order, as accelerate fills up the last one of several processes. Were it short, the cuts
        # between steps would shift and mix new with old examples.
        return [order[index % self.num_new] for index in range(start, start + self._new)]

    def _draw_old(self) -> list[int]:
        start = self.epoch * self._old
        stop = start + self._old
        passes = range(start // self.num_old, ceil(stop / self.num_old))
        drawn = [i for number in passes for i in self._shuffled("old", self.num_old, number)]
        first = start % self.num_old
        return [self.num_new + index for index in drawn[first : first + self._old]]

    def _alternate(self, new: list[int], old: list[int]) -> Iterator[int]:
        new_size = self.replay_every * self.step_size
        old_size = self.replay_batches * self.step_size
        for index in range(ceil(len(new) / new_size)):
            yield from new[index * new_size : (index + 1) * new_size]
            yield from old[index * old_size : (index + 1) * old_size]

    def _shuffled(self, kind: str, count: int, number: int) -> list[int]:
        order = list(range(count))
        random.Random(f"rehearsal:{self.seed}:{kind}:{number}").shuffle(order)
        return order


def join_datasets(new: Any, old: Any, args: TrainingArguments) -> Any:
    """Return [new, old], to be sampled by :class:`RehearsalSampler`.

    Args:
        new: Training examples of the new task: a list or a map-style data set.
        old: Old examples likewise.
        args: Training arguments.

    Raises:
        ConsolidationError: A data set has no length or no examples, the columns of the two differ,
            or the arguments ask for another order of the examples.
    """
    for name, dataset in (("train_dataset", new), ("old_dataset", old)):
        streamed = isinstance(dataset, IterableDataset | datasets.IterableDataset)
        if streamed or not hasattr(dataset, "__len__"):
            raise ConsolidationError(
                f"{name} is {type(dataset).__name__}, but rehearsal draws examples by their "
                "numbers; give a list or a map-style data set"
            )
        if not len(dataset):
            raise ConsolidationError(
                f"{name} is empty, so that there is nothing to rehearse; give one with examples"
            )
    _refuse_other_orders(args)
    if not (isinstance(new, datasets.Dataset) and isinstance(old, datasets.Dataset)):
        return ConcatDataset([new, old])
    _refuse_other_columns(new, old)
    if new.format != old.format:  # joined, both would lose theirs
        return ConcatDataset([new, old])
    return datasets.concatenate_datasets([new, old])


def _refuse_other_orders(args: TrainingArguments) -> None:
    if args.train_sampling_strategy != "random":
        problem = f"train_sampling_strategy='{args.train_sampling_strategy}'"
    elif args.dataloader_drop_last:
        problem = "dataloader_drop_last"
    elif getattr(args.accelerator_config, "split_batches", False):
        problem = "accelerator_config.split_batches"
    else:
        return
    raise ConsolidationError(
        f"rehearsal has an order of its own, which {problem} would break; take it out or train "
        "without old_dataset"
    )


def _refuse_other_columns(new: datasets.Dataset, old: datasets.Dataset) -> None:
    # datasets would fill missing columns with None, and fail at other types in its own words.
    names = sorted(
        name
        for name in {*new.features, *old.features}
        if new.features.get(name) != old.features.get(name)
    )
    if names:
        raise ConsolidationError(
            f"train_dataset and old_dataset differ in the columns {', '.join(names)}; give both "
            "the same columns of the same types (Dataset.select_columns, Dataset.cast)"
        )


def keep_part(dataset: Any, share: float, seed: int = 0) -> Any:
    """Return a random part of a data set, to be kept for rehearsal.

    Drawn without replacement, of the examples' own order, at least one.

    Args:
        dataset: A ``datasets.Dataset``, a list, or anything else with a length and indices.
        share: Of the examples, above 0 and at most 1; their number is rounded.
        seed: Of the draw.

    Returns:
        A ``datasets.Dataset`` of one, a list of anything else.

    Raises:
        ConsolidationError: There is nothing to keep, or the share is not one.
    """
    if not 0 < share <= 1:
        raise ConsolidationError(
            f"share {share} of the examples to keep is not above 0 and at most 1; correct it"
        )
    if not len(dataset):
        raise ConsolidationError("the data set to keep a part of is empty; give one with examples")
    count = max(1, round(share * len(dataset)))
    kept = sorted(random.Random(f"keep:{seed}").sample(range(len(dataset)), count))
    if isinstance(dataset, datasets.Dataset):
        return dataset.select(kept)
    return [dataset[index] for index in kept]
