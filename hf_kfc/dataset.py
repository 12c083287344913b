"""A data set as it is read: what tells it from another one, and draws that leave no trace."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["fingerprint", "random_numbers_kept"]

_MOST_READ = 32


@contextmanager
def random_numbers_kept(seed: int) -> Iterator[None]:
    """Draw the same random numbers in every process, and go on afterwards as if none were drawn."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):  # collators work on the CPU
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def fingerprint(data: Any, seed: int) -> str | None:
    """Return what tells a data set from another one; None of one without length or numbers.

    Read are its length and up to 32 examples at equal distances; one whose examples change from
    reading to reading tells its length alone.

    Args:
        data: The data set.
        seed: Of what it draws at random.
    """
    if not isinstance(data, Sized) or not hasattr(data, "__getitem__") or isinstance(data, Mapping):
        return None
    count = len(data)
    size = min(count, _MOST_READ)
    with random_numbers_kept(seed):
        rows = [_digest(data[index * count // size]) for index in range(size)]
        is_fixed = size == 0 or _digest(data[0]) == rows[0]
    return hashlib.sha256(json.dumps([count, rows if is_fixed else []]).encode()).hexdigest()


def _digest(example: Any) -> str:
    text = json.dumps(example, default=_words, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _words(value: Any) -> Any:
    if isinstance(value, Tensor):  # numpy has no bfloat16
        value = (value.double() if value.is_floating_point() else value).numpy(force=True)
    if isinstance(value, np.ndarray | np.generic):
        return [str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()]
    return type(value).__name__  # an image, as an object, has no words of its own
