"""Buffers that training moves and no penalty holds, as the running statistics of BatchNorm."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..errors import ConsolidationError
from .adapters import plain_name
from .fitting import Patterns

__all__ = ["BufferWatch"]

logger = logging.getLogger(__name__)


class BufferWatch:
    """Keeps running statistics at the anchor's, and refuses other buffers that move.

    Left to themselves, the statistics of a new task change what the model says to the old one's
    inputs though no parameter moves. Their modules therefore stay in evaluation mode, as is usual
    in fine-tuning.

    Attributes:
        modules: Those that stay in evaluation mode, by name.
    """

    def __init__(self, model: nn.Module, ignore: Iterable[str] | None = None) -> None:
        free = Patterns(model, ignore)
        self.modules = {
            name: module
            for name, module in model.named_modules()
            if isinstance(getattr(module, "running_mean", None), Tensor)
            and plain_name(f"{name}.running_mean") not in free
        }
        if self.modules:
            kinds = Counter(type(module).__name__ for module in self.modules.values())
            logger.warning(
                "%s stay in evaluation mode, with the running statistics that they have: other "
                "ones would change what is said of the old task's inputs. List them in `ignore` to "
                "let them move.",
                ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
            )
        kept = model.state_dict().keys()  # others, as tables of positions, are computed anew
        self._before = {
            name: buffer.detach().clone()
            for name, buffer in model.named_buffers()
            if name in kept and buffer.is_floating_point() and plain_name(name) not in free
        }

    def hold(self) -> None:
        """Put the modules with running statistics into evaluation mode, after ``model.train()``."""
        for module in self.modules.values():
            module.eval()

    def check(self, model: nn.Module) -> None:
        """Refuse other buffers that have moved since the training began."""
        now = dict(model.named_buffers())
        moved = [n for n, b in self._before.items() if not torch.equal(b.to(now[n]), now[n])]
        if moved:
            raise ConsolidationError(
                f"{len(moved)} buffers of {type(model).__name__} move in training ({moved[0]}, "
                "...), where no penalty holds them; keep their modules from it, or let them move "
                "by listing them in `ignore` of the ConsolidationConfig"
            )
