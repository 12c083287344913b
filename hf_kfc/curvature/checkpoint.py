"""The progress of a long estimate on disk, so that one that was killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Subset

from ..dataset import fingerprint
from ..errors import CurvatureError
from ..files import refuse_blocked
from .accumulators import SquaredGradients
from .discovery import Layer

__all__ = ["CurvatureCheckpoint", "Sums", "identity_of", "parameters_digest"]

logger = logging.getLogger(__name__)


class Sums(Protocol):
    """What is summed over examples."""

    def totals(self) -> list[Tensor]:
        """Return the tensors that grow."""


class CurvatureCheckpoint:
    """What one process has summed up to now, in one file for each pass over the data.

    A file is written under another name, flushed to the disk and then renamed: it is either whole
    or not there. It carries the identity of its estimate and a SHA-256 of its sums.

    Args:
        directory: The folder, the same for all processes; made when there is something to keep.
        identity: What makes two estimates the same, by :func:`identity_of`.
        rank: Number of this process.
        world: Number of processes.
        seconds: How much work may be lost.

    Raises:
        CurvatureError: The folder holds the progress of another estimate.
    """

    def __init__(
        self, directory: Path, identity: Mapping[str, str], rank: int, world: int, seconds: float
    ) -> None:
        refuse_blocked(directory)
        self.directory = directory
        self.identity = dict(identity) | {"number of processes": str(world)}
        self.seconds = seconds
        self._suffix = f"-{rank + 1:05}-of-{world:05}.safetensors"
        self._kept_at = time.monotonic()
        # Of all processes: each then refuses, and none goes on alone.
        for path in sorted(directory.glob("*-of-*.safetensors")):
            self._refuse_other(path)

    def restore(self, what: str, accumulators: Mapping[str, Sums]) -> int:
        """Fill the accumulators of a pass with what had been summed.

        Eigenbases are not kept: on another machine they may come out otherwise for the same
        factors, and then the pass begins anew.

        Args:
            what: Name of the pass.
            accumulators: At zero; changed in place.

        Returns:
            How many of this process's examples are done.

        Raises:
            CurvatureError: The file is damaged.
        """
        path, sums = self._path(what), _named(accumulators)
        if not path.exists():
            return 0
        with _damaged_told(path), safe_open(path, "pt") as file:
            metadata = file.metadata()
            kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            done, bases = int(metadata["done"]), metadata["bases"]
            sound = metadata["sha256"] == _hash(kept[name] for name in sorted(kept))
            if not sound or _kinds(kept) != _kinds(sums):
                raise ValueError("it holds other sums")
        if bases != _hash(_bases(accumulators)):
            logger.warning("%s is in other eigenbases than these; the pass begins anew", path)
            return 0
        for name, total in sums.items():
            total.copy_(kept[name])
        logger.info("pass '%s' goes on after %d examples of this process", what, done)
        return done

    def keep(
        self,
        what: str,
        accumulators: Mapping[str, Sums],
        done: int,
        *,
        last: bool = False,
    ) -> None:
        """Write the sums of a pass if it is time to.

        Args:
            what: Name of the pass.
            accumulators: As they are after ``done`` examples.
            done: How many of this process's examples they hold.
            last: The pass is at its end: write in any case.
        """
        if not last and time.monotonic() - self._kept_at < self.seconds:
            return
        sums = _named(accumulators)
        metadata = {
            "identity": json.dumps(self.identity),
            "done": str(done),
            "bases": _hash(_bases(accumulators)),
            "sha256": _hash(sums[name] for name in sorted(sums)),
        }
        path = self._path(what)
        partial = path.with_name(f".{path.name}.partial")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            save_file(sums, partial, metadata)
            _flush(partial)
            partial.replace(path)
            _flush(self.directory)
        except (OSError, SafetensorError) as error:
            logger.warning("%s cannot be written (%s); the estimate goes on", path, error)
        self._kept_at = time.monotonic()

    def clear(self) -> None:
        """Delete this process's files, and the folder with the last of them."""
        for path in self.directory.glob(f"*{self._suffix}*"):  # also partial ones
            path.unlink(missing_ok=True)
        with suppress(OSError):  # absent, or others are still there
            self.directory.rmdir()

    def _path(self, what: str) -> Path:
        return self.directory / f"{what}{self._suffix}"

    def _refuse_other(self, path: Path) -> None:
        try:
            with _damaged_told(path), safe_open(path, "pt") as file:
                found = json.loads(file.metadata()["identity"])
        except FileNotFoundError:  # another process is done with it
            return
        names = self.identity.keys() | found.keys()
        if other := sorted(n for n in names if self.identity.get(n) != found.get(n)):
            raise CurvatureError(
                f"{self.directory} holds the progress of another estimate, with other "
                f"{', '.join(other)}; delete it to begin anew, or choose another folder"
            )


@contextmanager
def _damaged_told(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise CurvatureError(f"{path} is damaged; delete it to begin its pass anew") from error


def identity_of(
    model: nn.Module,
    args: Any,
    layers: Sequence[Layer],
    others: Iterable[str],
    dataset: Any,
    indices: Sequence[int],
    first_batch: Mapping[str, Tensor],
    functions: Iterable[Callable[..., Any]],
) -> dict[str, str]:
    """Say what makes two estimates the same, each part in words that a refusal can use.

    Args:
        model: Its parameters and buffers count, to the bit.
        args: The estimate's arguments, a dataclass.
        layers: Names, shapes and rules count.
        others: Names of parameters without a rule.
        dataset: What examples are taken from; up to 32 of them are looked at.
        indices: The examples that are used.
        first_batch: Their first few, collated.
        functions: That turn batches into logits and masks; their names count.
    """
    found = [(layer.name, type(layer.rule).__name__, layer.shapes) for layer in layers]
    return {f"argument {name}": str(value) for name, value in asdict(args).items()} | {
        "parameters of the model": parameters_digest(model),
        "layers": _digest(json.dumps([found, *others]).encode()),
        "choice of examples": _digest(json.dumps(list(indices)).encode()),
        "examples": str(fingerprint(Subset(dataset, indices), args.curvature_seed)),
        "first batch": _hash(
            value for _, value in sorted(first_batch.items()) if isinstance(value, Tensor)
        ),
        "functions": ", ".join(getattr(f, "__qualname__", type(f).__qualname__) for f in functions),
        "device": next(model.parameters()).device.type,
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }


def parameters_digest(model: nn.Module) -> str:
    """Return the SHA-256 of a model's parameters and buffers."""
    return _hash([*model.parameters(), *model.buffers()])


def _named(accumulators: Mapping[str, Sums]) -> dict[str, Tensor]:
    return {
        f"{name}.{index}": total
        for name, accumulator in accumulators.items()
        for index, total in enumerate(accumulator.totals())
    }


def _bases(accumulators: Mapping[str, Sums]) -> Iterator[Tensor]:
    for accumulator in accumulators.values():
        if isinstance(accumulator, SquaredGradients) and accumulator.basis:
            yield from accumulator.basis


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size]]:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def _hash(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _flush(path: Path) -> None:
    """Make sure that a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
