"""A prior: where the parameters were after a task, and how much moving them would hurt it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..curvature import (
    OPERATORS,
    Block,
    Curvature,
    CurvatureArguments,
    Layout,
    estimate_curvature,
    identity_curvature,
)
from ..curvature.objective import (
    Forward,
    PositionMask,
    default_forward,
    default_position_mask,
)
from ..errors import PriorError
from .files import read_prior_files, write_prior_files
from .provenance import Provenance

__all__ = ["ConsolidationPrior"]


class ConsolidationPrior:
    """Anchor θ*, curvature F and provenance of one task: all that a later task needs of it.

    The posterior of the old task is approximated by a Gaussian around θ* with precision N·F
    (Laplace), so that consolidating means adding λ·(θ−θ*)ᵀ F (θ−θ*) to the new task's loss.

    Args:
        anchor: Parameters right after the task, by name.
        curvature: Covers exactly the anchor's names and shapes.
        provenance: Where it comes from.

    Raises:
        PriorError: The parts do not fit each other; all misfits are listed.

    Example:
        >>> prior = ConsolidationPrior.from_pretrained("runs/tier1/prior")  # doctest: +SKIP
        >>> trainer = ConsolidationTrainer(model, args, priors=[prior], ...)  # doctest: +SKIP
    """

    def __init__(
        self, anchor: Mapping[str, Tensor], curvature: Curvature, provenance: Provenance
    ) -> None:
        self.anchor = dict(anchor)
        self.curvature = curvature
        self.provenance = provenance
        if misfits := self._misfits():
            raise PriorError(f"prior of task '{provenance.task}' is unusable: {'; '.join(misfits)}")

    @property
    def task(self) -> str:
        """Name of the task."""
        return self.provenance.task

    @classmethod
    def estimate(
        cls,
        model: nn.Module,
        dataset: Any,
        data_collator: Callable[[list[Any]], Mapping[str, Tensor]],
        args: CurvatureArguments | None = None,
        *,
        task: str,
        anchor_metrics: Mapping[str, float] | None = None,
        forward: Forward = default_forward,
        position_mask: PositionMask = default_position_mask,
    ) -> Self:
        """Make the prior of a model that has just learnt a task.

        Args:
            model: The model at its anchor.
            dataset: The task's training examples.
            data_collator: Makes a batch of a list of examples.
            args: How the curvature is estimated.
            task: Short name of the task.
            anchor_metrics: The model's metrics on the task.
            forward: See :func:`~hf_kfc.curvature.estimate_curvature`.
            position_mask: See :func:`~hf_kfc.curvature.estimate_curvature`.

        Raises:
            CurvatureError: See :func:`~hf_kfc.curvature.estimate_curvature`.
        """
        args = args or CurvatureArguments()
        curvature = estimate_curvature(
            model, dataset, data_collator, args, forward=forward, position_mask=position_mask
        )
        provenance = Provenance(
            task,
            **_origin(model),
            num_examples=len(dataset),
            curvature=args.curvature,
            labels=str(args.labels),
            sharing=str(args.sharing),
            anchor_metrics=dict(anchor_metrics or {}),
        )
        return cls(_anchor(model, curvature), curvature, provenance)

    @classmethod
    def l2(cls, model: nn.Module, *, task: str, ignore: Sequence[str] = ()) -> Self:
        """Make the data-free prior F = I: L2 towards the model's present parameters.

        Args:
            model: The model at its anchor.
            task: Short name of the task it has learnt.
            ignore: Parameters left to move freely, as in
                :func:`~hf_kfc.curvature.find_layers`.
        """
        curvature = identity_curvature(model, ignore)
        return cls(_anchor(model, curvature), curvature, Provenance(task, **_origin(model)))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the anchor and the operators: equal exactly for equal penalties."""
        digest = hashlib.sha256()
        config, tensors = self._to_files()
        digest.update(repr(config["blocks"]).encode())
        for name in sorted(tensors):
            digest.update(name.encode())
            digest.update(tensors[name].numpy().tobytes())
        return digest.hexdigest()

    def check(self, model: nn.Module) -> None:
        """Make sure that the prior can consolidate a model.

        Args:
            model: The model to be trained.

        Raises:
            PriorError: A covered parameter is missing or has another shape, or a trainable
                parameter is neither covered nor ignored; all are listed.
        """
        parameters = dict(model.named_parameters())
        misfits = []
        for name, shape in self.curvature.parameters.items():
            if name not in parameters:
                misfits.append(f"the model has no parameter {name}")
            elif tuple(parameters[name].shape) != shape:
                found = list(parameters[name].shape)
                misfits.append(f"{name} has shape {found}, the prior's has {list(shape)}")
        known = self.curvature.parameters.keys() | set(self.curvature.ignored)
        misfits += [
            f"the prior knows nothing of {name}"
            for name, parameter in parameters.items()
            if parameter.requires_grad and name not in known
        ]
        if misfits:
            raise PriorError(
                f"prior of task '{self.task}' does not fit {type(model).__name__}: "
                + "; ".join(misfits)
            )

    def save_pretrained(self, directory: str | Path, *, max_shard_size: str = "5GB") -> None:
        """Write the prior to a folder: safetensors and a ``config.json``.

        The files are written under another name and then moved, so the folder is either whole
        or not there. Tensors are stored in float32, without damping.

        Args:
            directory: The folder; an older prior there is replaced.
            max_shard_size: Size above which the tensors are split into several files.

        Raises:
            PriorError: The folder holds something other than a prior.
        """
        config, tensors = self._to_files()
        write_prior_files(Path(directory), config, tensors, max_shard_size)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> Self:
        """Read a prior from a folder that :meth:`save_pretrained` made.

        Args:
            directory: The folder.

        Raises:
            PriorError: Files are missing or damaged, or their content is not a valid prior
                (names, shapes, dtypes, non-finite values, asymmetric or indefinite factors);
                all misfits are listed.
        """
        directory = Path(directory)
        config, tensors = read_prior_files(directory)
        try:
            return cls._from_files(config, tensors)
        except PriorError as error:
            raise PriorError(f"{directory}: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PriorError(
                f"{directory}: config.json is malformed ({type(error).__name__}: {error}); "
                "save the prior again"
            ) from None

    def _to_files(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        tensors = {f"anchor/{name}": _stored(value) for name, value in self.anchor.items()}
        keys: dict[int, str] = {}  # layers that read the same inputs store one A
        blocks = []
        for block in self.curvature.blocks:
            names = {}
            for part, tensor in block.operator.state().items():
                key = keys.setdefault(id(tensor), f"{block.name}/{part}")
                tensors[key] = _stored(tensor) if key not in tensors else tensors[key]
                names[part] = key
            blocks.append(
                {
                    "name": block.name,
                    "layout": str(block.layout),
                    "parameters": {name: list(shape) for name, shape in block.shapes.items()},
                    "operator": block.operator.kind,
                    "tensors": names,
                }
            )
        config = {
            "provenance": self.provenance.to_dict(),
            "num_curvature_examples": self.curvature.num_examples,
            "ignored": list(self.curvature.ignored),
            "blocks": blocks,
        }
        return config, tensors

    @classmethod
    def _from_files(cls, config: dict[str, Any], tensors: dict[str, Tensor]) -> Self:
        misfits = [
            f"{name} is {value.dtype}, expected torch.float32"
            for name, value in tensors.items()
            if value.dtype != torch.float32
        ]
        used, blocks = set(), []
        for entry in config["blocks"]:
            missing = [key for key in entry["tensors"].values() if key not in tensors]
            misfits += [f"tensor {key} is missing" for key in missing]
            if entry["operator"] not in OPERATORS:
                misfits.append(f"operator '{entry['operator']}' of {entry['name']} is unknown")
            elif not missing:
                state = {part: tensors[key] for part, key in entry["tensors"].items()}
                shapes = {name: tuple(shape) for name, shape in entry["parameters"].items()}
                operator = OPERATORS[entry["operator"]].from_state(state)
                blocks.append(Block(entry["name"], Layout(entry["layout"]), shapes, operator))
            used |= set(entry["tensors"].values())
        anchor = {
            name.removeprefix("anchor/"): value
            for name, value in tensors.items()
            if name.startswith("anchor/") and name not in used
        }
        extra = tensors.keys() - used - {f"anchor/{name}" for name in anchor}
        misfits += [f"tensor {name} belongs to no block" for name in sorted(extra)]
        if misfits:
            raise PriorError("; ".join(misfits))
        curvature = Curvature(
            tuple(blocks), int(config["num_curvature_examples"]), tuple(config["ignored"])
        )
        return cls(anchor, curvature, Provenance.from_dict(config["provenance"]))

    def _misfits(self) -> list[str]:
        shapes = self.curvature.parameters
        misfits = [f"the anchor of {name} is missing" for name in shapes if name not in self.anchor]
        misfits += [f"the anchor {name} has no curvature" for name in self.anchor.keys() - shapes]
        for name, value in self.anchor.items():
            if name in shapes and tuple(value.shape) != shapes[name]:
                misfits.append(
                    f"the anchor {name} has shape {list(value.shape)}, not {list(shapes[name])}"
                )
            if not bool(value.isfinite().all()):
                misfits.append(f"the anchor {name} has NaN or infinite values")
        if sum(len(block.shapes) for block in self.curvature.blocks) != len(shapes):
            misfits.append("a parameter stands in two blocks")
        for block in self.curvature.blocks:
            misfits += [f"{block.name}: {m}" for m in _operator_misfits(block)]
        return misfits


def _operator_misfits(block: Block) -> list[str]:
    infinite = [
        f"{part} has NaN or infinite values"
        for part, tensor in block.operator.state().items()
        if not bool(tensor.isfinite().all())
    ]
    return infinite or block.operator.mismatch(block.shape)


def _anchor(model: nn.Module, curvature: Curvature) -> dict[str, Tensor]:
    parameters = dict(model.named_parameters())
    return {name: _wide_copy(parameters[name]) for name in curvature.parameters}


def _wide_copy(parameter: Tensor) -> Tensor:
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return parameter.detach().to(dtype, copy=True)


def _stored(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()


def _origin(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "config", None)
    return {
        "base_model": getattr(config, "_name_or_path", "") or type(model).__name__,
        "base_revision": getattr(config, "_commit_hash", None),
    }
