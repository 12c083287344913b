"""What happens around the steps of a training with priors or probes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

__all__ = ["ConsolidationSteps", "numbered"]


class ConsolidationSteps(TrainerCallback):
    """Tells a trainer when a training begins, ends, and does a step."""

    def __init__(self, trainer: Any) -> None:  # a ConsolidationMixin, which imports this file
        self._trainer = trainer
        self._count = 0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Begin, also an attempt with another batch size, and measure."""
        self._count = 0
        self._trainer._begin()
        self._trainer._measure(True)

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Look at steps 1, 2, 4, 8 and so on."""
        self._count += 1
        if self._count.bit_count() == 1:
            self._trainer._look_at_step()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Measure."""
        self._trainer._measure(False)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Measure."""
        self._trainer._measure(True)


def numbered(names: Sequence[str]) -> list[str]:
    """Return names of which each is there once: those that are not get a number."""
    count = Counter(names)
    return [name if count[name] == 1 else f"{name}_{i}" for i, name in enumerate(names)]
