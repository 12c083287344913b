"""What several processes must agree on before they train together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_kfc.ranking import check_processes

__all__ = ["check_processes", "process_state", "shared"]

_T = TypeVar("_T")


def process_state() -> PartialState:
    """Return which of the processes this is; joins them at the first call.

    accelerate's own default takes several processes without an accelerator for single ones.
    """
    return PartialState(cpu=not torch.accelerator.is_available())


def shared(make: Callable[[], _T]) -> _T:
    """Let the main process make something and give it to all.

    Args:
        make: Called in the main process; what it returns can be pickled.
    """
    values: list[Any] = [make() if process_state().is_main_process else None]
    return cast(_T, broadcast_object_list(values)[0])
