"""What several processes must agree on before they train together."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_kfc.errors import ConsolidationError

__all__ = ["check_processes", "process_state", "shared"]

_T = TypeVar("_T")


def process_state() -> PartialState:
    """Return which of the processes this is; joins them at the first call.

    accelerate's own default takes several processes without an accelerator for single ones.
    """
    return PartialState(cpu=not torch.accelerator.is_available())


def check_processes() -> None:
    """Make sure that as many processes run as ``accelerate launch`` was asked for.

    Raises:
        ConsolidationError: There are fewer, or more.
    """
    asked = os.environ.get("WORLD_SIZE")
    if asked is not None:
        started = process_state().num_processes
        if started != int(asked):
            raise ConsolidationError(
                f"{asked} processes were asked for and {started} run; start the recipe again with "
                "as many as there are devices"
            )
    elif "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ:
        # Where accelerate is asked for several processes it sets the address, but without
        # --multi_gpu it then starts a single one (accelerate#2741).
        raise ConsolidationError(
            "several processes were asked for and one was started; on GPUs and CPUs alike, launch "
            "with --multi_gpu --num_processes N --num_machines 1"
        )


def shared(make: Callable[[], _T]) -> _T:
    """Let the main process make something and give it to all.

    Args:
        make: Called in the main process; what it returns can be pickled.
    """
    values: list[Any] = [make() if process_state().is_main_process else None]
    return cast(_T, broadcast_object_list(values)[0])
