"""Rehearsal: kept examples of old tasks among those of the new one."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from math import ceil
from typing import Any

from torch.utils.data import Sampler

from hf_kfc.errors import ConsolidationError

__all__ = ["SCHEDULES", "RehearsalSampler", "keep_part"]

SCHEDULES = ("replay", "fixed", "growing")

_REPLAY_EVERY = 5
"""Batches of the new task before a batch of old examples."""
_OLD_SHARE = 0.5
"""Share of old examples in an epoch of a fixed size."""


class RehearsalSampler(Sampler[int]):
    """The order of an epoch over the data set [new examples, old examples].

    - ``replay``, experience replay (de Masson d'Autume et al. 2019, who replay once in many
      batches): the new task in random order, and after every 5 batches of it one of old examples.
      A batch is one optimizer step: each is of purely new or purely old examples.
    - ``fixed``, rehearsal (Robins 1995) at the cost of plain fine-tuning: N = ``num_new`` examples,
      half of which, rounded, are old and the others new, shuffled. The new ones are the next of a
      fixed random circle: all are seen equally often, and others are left out in each epoch.
    - ``growing``, training on everything that was kept: all new and all old examples, shuffled.

    Old examples come from an endless sequence of passes through all of them, each in a new order,
    that goes on from epoch to epoch: none is repeated before every other one was used. All is a
    function of seed and epoch alone, so that processes agree.

    Args:
        num_new: Examples of the new task; their indices come first.
        num_old: Old examples; their indices follow.
        schedule: One of the three.
        step_size: Examples in an optimizer step, of all processes.
        seed: Of all random orders.

    Raises:
        ConsolidationError: There are too few examples to rehearse old ones among new ones.
    """

    def __init__(
        self, num_new: int, num_old: int, schedule: str, *, step_size: int = 1, seed: int = 0
    ) -> None:
        self.num_new, self.num_old, self.schedule = num_new, num_old, schedule
        self.step_size, self.seed, self.epoch = step_size, seed, 0
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
                f"old one under '{schedule}'; lower the batch size or use another rehearsal"
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
            return steps * self.step_size, steps // _REPLAY_EVERY * self.step_size
        if self.schedule == "fixed":
            old = min(max(round(_OLD_SHARE * self.num_new), 1), self.num_new - 1)
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
        size = self.step_size
        for number in range(ceil(len(new) / (_REPLAY_EVERY * size))):
            yield from new[number * _REPLAY_EVERY * size : (number + 1) * _REPLAY_EVERY * size]
            yield from old[number * size : (number + 1) * size]

    def _shuffled(self, kind: str, count: int, number: int) -> list[int]:
        order = list(range(count))
        random.Random(f"rehearsal:{self.seed}:{kind}:{number}").shuffle(order)
        return order


def keep_part(examples: Sequence[Any], share: float, seed: int = 0) -> list[Any]:
    """Return a random part of some examples, to be kept for rehearsal.

    Drawn without replacement, in the examples' own order, at least one.

    Args:
        examples: What to keep a part of.
        share: Of the examples, above 0 and at most 1; their number is rounded.
        seed: Of the draw.
    """
    count = max(1, round(share * len(examples)))
    kept = sorted(random.Random(f"keep:{seed}").sample(range(len(examples)), count))
    return [examples[index] for index in kept]
