"""What happens around the steps of a training with priors or probes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

__all__ = ["ConsolidationSteps", "numbered"]


class ConsolidationSteps(TrainerCallback):
    """Tells a trainer when a training begins, ends, and has done its first and every step."""

    def __init__(self, trainer: Any) -> None:  # a ConsolidationMixin, which imports this file
        self._trainer = trainer
        self._has_looked = False

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Begin, also an attempt with another batch size, and measure."""
        self._has_looked = False
        self._trainer._begin()
        self._trainer._measure(True)

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Look at the first step."""
        if not self._has_looked:
            self._trainer._look_at_first_step()
            self._has_looked = True

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
