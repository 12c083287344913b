"""Which of several processes this is."""

from __future__ import annotations

import torch
from accelerate import PartialState

__all__ = ["process_state"]


def process_state() -> PartialState:
    """Return which of the processes this is; joins them at the first call.

    accelerate's own default takes several processes without an accelerator for single ones.
    """
    return PartialState(cpu=not torch.accelerator.is_available())
