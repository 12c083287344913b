"""Work shared among processes: who multiplies what, and how the parts come together."""

from __future__ import annotations

from collections.abc import Sequence

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate

__all__ = [
    "assign",
    "can_share",
    "problem_of_sharding",
    "reshard",
    "shard_like",
    "undo_evaluation",
    "whole",
]


def assign(costs: Sequence[int], processes: int) -> list[int]:
    """Assign blocks to processes, the most expensive first, each to the one that has least to do.

    Longest processing time first (Graham 1969): at most 4/3 of the best that is possible. Every
    process computes the same.
    """
    loads = [0] * processes
    owners = [0] * len(costs)
    for block in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        owners[block] = loads.index(min(loads))
        loads[owners[block]] += costs[block]
    return owners


def whole(parameter: Tensor) -> Tensor:
    """Return a parameter's values, gathered from all processes if it is FSDP2's DTensor.

    Args:
        parameter: All processes must ask for the same ones in the same order.
    """
    parameter = parameter.detach()
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def shard_like(gradient: Tensor, parameter: DTensor, *, is_part: bool) -> Tensor:
    """Give a whole gradient the dtype and the sharding of its parameter.

    Args:
        gradient: In the parameter's whole shape.
        parameter: FSDP2's.
        is_part: Whether the gradients of all processes are to be added; without, they are equal.
    """
    mesh = parameter.device_mesh
    kind: Placement = Partial() if is_part else Replicate()
    given = DTensor.from_local(gradient, mesh, [kind] * mesh.ndim, run_check=False)
    sharded: Tensor = given.redistribute(mesh, parameter.placements)
    return sharded.to(parameter.dtype)


def can_share(parameters: Sequence[Tensor], processes: int) -> bool:
    """Say whether the parts of all processes come together in every parameter's gradient.

    Args:
        parameters: Whole, for DDP to average, or FSDP2's; a mixture is sharded in part only.
        processes: How many there are.
    """
    meshes = [p.device_mesh if isinstance(p, DTensor) else None for p in parameters]
    return all(mesh is None for mesh in meshes) or all(
        mesh is not None and mesh.size() == processes for mesh in meshes
    )


def reshard(model: nn.Module) -> None:
    """Shard parameters again that FSDP2 has left whole after a forward pass alone."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def undo_evaluation(model: nn.Module) -> None:
    """Undo what an evaluation before training does to a model in several processes.

    It marks the model as prepared, so that accelerate would not wrap it in DDP and every process
    would train alone. Under FSDP2 it leaves the root's parameters unsharded, so that the optimizer
    would step on temporary copies.
    """
    vars(model).pop("_is_accelerate_prepared", None)
    reshard(model)


def problem_of_sharding(accelerator: Accelerator) -> str | None:
    """Say why parameters are not where their names are, and what to do; None if they are."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return "DeepSpeed empties or moves the parameters; use DDP or FSDP2"
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and getattr(plugin, "fsdp_version", 2) == 1:
        return "FSDP1 flattens the parameters; use fsdp_version=2"
    return None
