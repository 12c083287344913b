"""How strongly each earlier task is held, by what may be forgotten of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["LEAST", "MOST", "Budget"]

_GAIN, _FASTEST = 20.0, 0.5
"""The factor's logarithm grows by this in a training that forgets twice the budget throughout; and
at most by that in a step."""
_WINDOW = 0.01
"""Share of a training over which the divergence of its batches is averaged."""
_SHOCK = 3.0
"""Budgets that are forgotten count as at most so many: a first shock is not to rule for long."""
LEAST, MOST = 0.25, 4.0
"""Bounds of the factor. Without them the new task paid up to 19 points where tasks conflict."""


@dataclass
class _Held:
    """An earlier task.

    Args:
        factor: Of its strength and of its probes' weight.
        mean: Moving mean of the divergence of its batches; None before the first.
        ratio: Divergence of the probes held out over that mean, when they were measured last.
    """

    factor: float = 1.0
    mean: float | None = None
    ratio: float = 1.0


class Budget:
    """Sets a factor of each earlier task's λ and μ, so that what is forgotten comes to a budget.

    With r = forgotten / budget, in every step with probes m ← m·exp(κ(min(r, 3) − 1)),
    κ = 20 / steps of the training. Forgotten is what is measured on the probes held out, carried on
    between two measurements by the divergence of the batches. m starts at 1 and stays within ¼
    and 4: a budget that would take more is not kept.

    Args:
        limit: Nats of each earlier task's KL on the probes that are held out.
        steps: Optimizer steps of the training.
    """

    def __init__(self, limit: float, steps: int) -> None:
        self._limit = limit
        self._rate = min(_FASTEST, _GAIN / max(steps, 1))
        self._blend = min(1.0, 1 / max(1.0, _WINDOW * steps))
        self._held: dict[str, _Held] = {}

    def factor(self, task: str) -> float:
        """Return m."""
        return self._of(task).factor

    @property
    def largest(self) -> float:
        """The largest m of all earlier tasks; 1 if there are none."""
        return max((held.factor for held in self._held.values()), default=1.0)

    def learn(self, task: str, divergence: float, every: int = 1) -> None:
        """Take in the nats of a step's batch, ``every`` steps after the last one, and set m."""
        held = self._of(task)
        before = divergence if held.mean is None else held.mean
        held.mean = before + min(1.0, every * self._blend) * (divergence - before)
        self._set(held, held.ratio * held.mean, every)

    def measure(self, task: str, divergence: float, every: int) -> None:
        """Take in the divergence in nats of the probes held out.

        Where no batch is learnt from, m is set by it, ``every`` steps after the last.
        """
        held = self._of(task)
        if held.mean is None:
            self._set(held, divergence, every)
        elif held.mean > 0:
            held.ratio = min(10.0, max(0.1, divergence / held.mean))

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as JSON values."""
        return {task: asdict(held) for task, held in self._held.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was written."""
        self._held = {task: _Held(**held) for task, held in state.items()}

    def _of(self, task: str) -> _Held:
        return self._held.setdefault(task, _Held())

    def _set(self, held: _Held, forgotten: float, every: int) -> None:
        excess = min(forgotten / self._limit, _SHOCK) - 1
        factor = held.factor * math.exp(every * self._rate * excess)
        held.factor = min(MOST, max(LEAST, factor))
