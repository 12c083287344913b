"""What happens around the steps of a training with priors or probes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback

__all__ = ["ConsolidationSteps", "numbered"]


class ConsolidationSteps(TrainerCallback):
    """Tells a trainer when a training begins, ends, and has done its first and every step.

    Args:
        begin: Called when a training begins, or an attempt with another batch size.
        look: Called before the first optimizer step.
        measure: Called after every step, and with ``True`` where the training begins and ends.
    """

    def __init__(
        self,
        begin: Callable[[], None],
        look: Callable[[], None],
        measure: Callable[[bool], None],
    ) -> None:
        self._begin, self._look, self._measure = begin, look, measure
        self._has_looked = False

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Begin, and measure."""
        self._has_looked = False
        self._begin()
        self._measure(True)

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Look at the first step."""
        if not self._has_looked:
            self._look()
            self._has_looked = True

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Measure."""
        self._measure(False)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Measure."""
        self._measure(True)


def numbered(names: Sequence[str]) -> list[str]:
    """Return names of which each is there once: those that are not get a number."""
    count = Counter(names)
    return [name if count[name] == 1 else f"{name}_{i}" for i, name in enumerate(names)]
