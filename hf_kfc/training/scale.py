"""How the Trainer scales a loss over the micro-batches of an optimizer step, and where it errs."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

__all__ = ["LossScale", "averages_kept"]

logger = logging.getLogger(__name__)


@contextmanager
def averages_kept(trainer: Trainer) -> Iterator[None]:
    """Leave what TRL's trainers average from log to log as it is: accuracies, entropies.

    Their losses add to it, and each of their logs empties it. What is computed or logged beside
    the training's own steps is to do neither.
    """
    kept: Any = getattr(trainer, "_metrics", None)
    if not isinstance(kept, dict):
        yield
        return
    vars(trainer)["_metrics"] = {mode: defaultdict(list) for mode in kept}
    try:
        yield
    finally:
        vars(trainer)["_metrics"] = kept


class LossScale:
    """Whether losses are taken as they are, are divided later, or should have been.

    The Trainer takes a loss for one over the labels of all micro-batches if ``forward`` accepts
    ``num_items_in_batch``, whether or not that is used. So it multiplies the loss of most heads
    but causal ones, a mean over the micro-batch, by the number of micro-batches and processes
    (transformers#47688).
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._ignores_items: bool | None = None

    def is_scaled(self, items: Tensor | int | None) -> bool:
        """Return whether the Trainer will not divide a loss any more."""
        trainer = self._trainer
        if self._declared is not None:
            return self._declared
        by_model = trainer.model_accepts_loss_kwargs and items is not None
        return by_model or trainer.compute_loss_func is not None

    def is_in_doubt(self, items: Tensor | int | None) -> bool:
        """Return whether :meth:`try_out` is to find out if a loss uses ``num_items_in_batch``."""
        trainer = self._trainer
        parts = trainer.args.gradient_accumulation_steps * trainer.accelerator.num_processes
        by_model = self._declared is None and trainer.compute_loss_func is None
        return items is not None and by_model and parts > 1 and self._ignores_items is None

    def try_out(
        self, loss_of: Callable[[Tensor | int], Any], items: Tensor | int, model: nn.Module
    ) -> None:
        """Find out once whether a loss changes with ``num_items_in_batch``, without a trace."""
        model.eval()  # dropout draws nothing
        with torch.no_grad(), averages_kept(self._trainer):
            results = loss_of(items), loss_of(2 * items)
        model.train()
        one, two = (x[0] if isinstance(x, tuple) else x for x in results)
        tells = (one != 0) & ~one.isnan()  # of a micro-batch without labels, a mean is NaN
        seen = torch.stack([((one != two) & tells).any(), ((one == two) & tells).any()]).float()
        if self._trainer.accelerator.num_processes > 1:
            seen = self._trainer.accelerator.reduce(seen)  # all must go on in the same way
        depends, does_not = seen.tolist()
        if depends or does_not:  # a micro-batch without labels tells nothing
            self._ignores_items = not depends
        if self._ignores_items:
            logger.warning(
                "The loss of %s is a mean over the micro-batch, which the Trainer would multiply "
                "by the number of micro-batches; it is divided by that here, since the penalty "
                "counts once.",
                type(self._trainer.model).__name__,
            )

    def is_mean(self, items: Tensor | int | None) -> bool:
        """Return whether a loss is a mean over the micro-batch, and the Trainer does not know."""
        return items is not None and bool(self._ignores_items)

    @property
    def _declared(self) -> bool | None:
        return getattr(self._trainer, "loss_is_scaled_for_ga", None)
