"""The estimator: one pass over the data (two for EKFAC) from a model to its curvature."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from ..curvature_arguments import CurvatureArguments, Labels, Products
from ..errors import CurvatureError
from .accumulators import Accumulator, LayerBatch, make_accumulators, rotate_accumulators
from .blocks import Curvature
from .capture import Use, capture, frozen
from .checkpoint import CurvatureCheckpoint, identity_of
from .discovery import Layer, find_layers
from .frozen_linear import FrozenLinear
from .gradient_check import check_gradients, learning
from .objective import (
    Forward,
    Outputs,
    PositionMask,
    default_forward,
    default_position_mask,
    logit_gradients,
)
from .positions import Positions

__all__ = ["estimate_curvature"]

logger = logging.getLogger(__name__)


def estimate_curvature(
    model: nn.Module,
    dataset: Any,
    data_collator: Callable[[list[Any]], Mapping[str, Tensor]],
    args: CurvatureArguments | None = None,
    *,
    forward: Forward = default_forward,
    position_mask: PositionMask = default_position_mask,
    checkpoint_dir: str | Path | None = None,
    checkpoint_seconds: float = 300.0,
) -> Curvature:
    """Estimate the Fisher of a model's loss on a data set, one operator per layer.

    F = mean over examples of the outer product of the **per-example** gradient of the
    log-likelihood. The model runs in evaluation mode, no weight gradient is computed (except,
    per example, for diagonals), and the result depends neither on the batch size nor on the
    number of processes: with ``torch.distributed`` initialised each process takes its share of
    the examples and all return the same curvature.

    Kronecker factors (Martens & Grosse 2015; Eschenhagen et al. 2023, arXiv:2311.00636), for
    inputs a and output gradients g at the R positions of each of N examples:

    * ``expand``: A = mean over positions of a aᵀ, G = mean over examples of Σ_r g_r g_rᵀ;
    * ``reduce``: A = mean of ā āᵀ with ā the mean over positions, G = mean of (Σ_r g)(Σ_r g)ᵀ;
    * ``average``: as ``expand``, but G is a mean over positions too (McInerney et al. 2021).

    Layer normalisation always has a diagonal curvature.

    Args:
        model: At the parameters to be remembered; unwrapped (not DDP or FSDP).
        dataset: Examples by index, with a length.
        data_collator: Makes a batch of tensors of a list of examples.
        args: Kind, labels, sharing, ignored parameters and sizes.
        forward: Runs the model on a batch; the default expects a ``logits`` output.
        position_mask: Says which positions of a batch count.
        checkpoint_dir: A folder of this estimate alone, the same for all processes: its progress
            is kept there, so that the same call goes on after a kill, to the same result; deleted
            at the end.
        checkpoint_seconds: How much work a kill may cost.

    Returns:
        The curvature, in float32 or the model's wider dtype, on the model's device.

    Raises:
        CurvatureError: A parameter without a rule, a layer never used, tensors that cannot be
            assigned to examples, a sharded model, an empty data set, or a checkpoint of another
            estimate.

    Example:
        >>> import torch
        >>> from transformers.modeling_outputs import SequenceClassifierOutput
        >>> class Tiny(torch.nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.head = torch.nn.Linear(4, 3)
        ...     def forward(self, x):
        ...         return SequenceClassifierOutput(logits=self.head(x))
        >>> data = [{"x": torch.randn(4), "labels": torch.tensor(1)} for _ in range(8)]
        >>> curvature = estimate_curvature(Tiny(), data, torch.utils.data.default_collate)
        >>> curvature.blocks[0].operator.A.shape
        torch.Size([5, 5])
    """
    args = args or CurvatureArguments()
    _refuse_wrapped(model)
    layers, ignored = find_layers(model, args.ignore)
    if not layers:
        raise CurvatureError(
            f"{type(model).__name__} has no trainable parameter outside `ignore`, so there is no "
            "curvature to estimate; make some trainable"
        )
    indices = _choose_examples(len(dataset), args)
    run = _Run(model, dataset, data_collator, args, forward, position_mask, layers, indices)
    with frozen(model):
        accumulators = make_accumulators(
            layers, run.discover(), args.curvature, args.sharing, args.products
        )
        checkpoint = None
        if checkpoint_dir is not None:
            checkpoint = run.checkpoint(Path(checkpoint_dir), checkpoint_seconds)
        run.accumulate(accumulators, "curvature", checkpoint)
        if args.curvature == "kronecker_eigen":
            rotated = rotate_accumulators(accumulators, len(indices))
            if rotated:
                run.accumulate(rotated, "eigenvalues", checkpoint)
            accumulators |= rotated
    if checkpoint:
        checkpoint.clear()
    summed = [(layer, accumulators[layer.name]) for layer in layers]
    blocks = [
        layer.block(sums.operator(len(indices)), sums.input_examples) for layer, sums in summed
    ]
    return Curvature(tuple(blocks), len(indices), tuple(ignored))


@dataclass
class _Run:
    """What all passes of one estimate have in common."""

    model: nn.Module
    dataset: Any
    data_collator: Callable[[list[Any]], Mapping[str, Tensor]]
    args: CurvatureArguments
    forward: Forward
    position_mask: PositionMask
    layers: Sequence[Layer]
    indices: Sequence[int]

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def discover(self) -> dict[str, list[Use]]:
        """Run two examples to see which layers are used, how often, on what, and that it is all."""
        batch, examples = self._first_batch()
        positions = self._positions(batch, examples)
        with learning(self.layers):
            with torch.enable_grad(), capture(self.layers, positions) as uses:
                outputs = self._forward(batch)
            if unused := [name for name, calls in uses.items() if not calls]:
                raise CurvatureError(
                    f"layers {', '.join(unused)} were never called in the forward pass, so their "
                    "curvature is unknown; list their parameters in `ignore=[...]`"
                )
            check_gradients(self.layers, outputs.logits, uses, positions)
        return uses

    def checkpoint(self, directory: Path, seconds: float) -> CurvatureCheckpoint:
        """Find out what this estimate has in a folder."""
        batch, _ = self._first_batch()
        functions = (self.forward, self.position_mask)
        identity = identity_of(self.model, self.args, self.layers, self.indices, batch, functions)
        return CurvatureCheckpoint(directory, identity, *_rank_and_world(), seconds)

    def accumulate(
        self,
        accumulators: Mapping[str, Accumulator],
        what: str,
        checkpoint: CurvatureCheckpoint | None = None,
    ) -> None:
        """Pass over this process's share of the data once, then sum over processes."""
        rank, world = _rank_and_world()
        mine, everything = self.indices[rank::world], len(self.indices)
        done = checkpoint.restore(what, accumulators) if checkpoint else 0
        with tqdm(
            total=everything,
            initial=min(done * world, everything),
            desc=what,
            unit=" examples",
            disable=rank != 0,
        ) as bar:
            for keys, batch in self._batches(mine[done:]):
                self._accumulate_batch(accumulators, keys, batch)
                done += len(keys)
                bar.update(
                    min(done * world, everything) - bar.n
                )  # of all processes: they keep pace
                if checkpoint:
                    checkpoint.keep(what, accumulators, done, last=done == len(mine))
        for accumulator in accumulators.values():
            for total in accumulator.totals():
                if world > 1:
                    dist.all_reduce(total)

    def _accumulate_batch(
        self,
        accumulators: Mapping[str, Accumulator],
        keys: Sequence[int],
        batch: Mapping[str, Tensor],
    ) -> None:
        positions = self._positions(batch, len(keys))
        layers = [layer for layer in self.layers if layer.name in accumulators]
        with torch.enable_grad(), capture(layers, positions) as uses:
            outputs = self._forward(batch)
        if unused := [name for name, calls in uses.items() if not calls]:
            raise CurvatureError(
                f"layers {', '.join(unused)} were called for the first examples but not for this "
                "batch; a model whose wiring depends on its input is not supported"
            )
        batches = [LayerBatch(layer, uses[layer.name], positions) for layer in layers]
        edges = [u.edge for layer_batch in batches for u in layer_batch.uses if u.edge is not None]
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            for layer_batch in batches:
                accumulators[layer_batch.layer.name].add_inputs(layer_batch)
            kind = Labels(self.args.labels)
            for v in logit_gradients(outputs, kind, keys, self.args.curvature_seed):
                gradients = iter(
                    torch.autograd.grad(
                        outputs.logits,
                        edges,
                        v.to(outputs.logits.dtype),
                        retain_graph=kind is Labels.EXACT,
                        allow_unused=True,
                    )
                )
                for layer_batch in batches:
                    layer_batch.set_gradients(
                        [None if u.edge is None else next(gradients) for u in layer_batch.uses]
                    )
                    accumulators[layer_batch.layer.name].add_gradients(layer_batch)

    def _forward(self, batch: Mapping[str, Tensor]) -> Outputs:
        products = Products(self.args.products)
        if products is Products.FULL:
            outputs = self.forward(self.model, batch)
        else:
            with FrozenLinear(half=products is Products.BFLOAT16):
                outputs = self.forward(self.model, batch)
        if not bool(outputs.logits.isfinite().all()):
            raise CurvatureError(
                f"{type(self.model).__name__} gave logits that are NaN or infinite; the model has "
                "diverged, or its forward masks classes with -inf instead of the dtype's minimum"
            )
        return outputs

    def _positions(self, batch: Mapping[str, Tensor], examples: int) -> Positions:
        positions = Positions(self.position_mask(batch))
        if positions.examples != examples:
            raise CurvatureError(
                f"the position mask has {positions.examples} rows for a batch of {examples} "
                "examples; its first dimension must be the examples"
            )
        return positions

    def _batches(
        self, indices: Sequence[int]
    ) -> Iterator[tuple[Sequence[int], Mapping[str, Tensor]]]:
        size = self.args.curvature_batch_size
        loader = DataLoader(
            Subset(self.dataset, indices), batch_size=size, collate_fn=self.data_collator
        )
        for start, batch in zip(range(0, len(indices), size), loader, strict=True):
            yield indices[start : start + size], self._to_device(batch)

    def _first_batch(self) -> tuple[dict[str, Tensor], int]:
        """Collate two examples, or one where batches have one."""
        chosen = self.indices[: min(2, self.args.curvature_batch_size)]
        batch = self.data_collator([self.dataset[index] for index in chosen])
        return self._to_device(batch), len(chosen)

    def _to_device(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in batch.items()}


def _rank_and_world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def _choose_examples(available: int, args: CurvatureArguments) -> list[int]:
    if available == 0:
        raise CurvatureError("the data set is empty; curvature needs at least one example")
    wanted = args.max_curvature_examples
    if wanted is None or wanted >= available:
        return list(range(available))
    generator = torch.Generator().manual_seed(args.curvature_seed)
    chosen: list[int] = torch.randperm(available, generator=generator)[:wanted].tolist()
    logger.info("curvature is estimated on %d of %d examples", wanted, available)
    return sorted(chosen)


def _refuse_wrapped(model: nn.Module) -> None:
    sharded = [name for name, p in model.named_parameters() if hasattr(p, "full_tensor")]
    wrapper = type(model).__name__
    if sharded or wrapper in (
        "DistributedDataParallel",
        "FullyShardedDataParallel",
        "DataParallel",
    ):
        raise CurvatureError(
            f"the model is wrapped or sharded ({wrapper}); estimate on the unwrapped model, for "
            "example after save_pretrained and from_pretrained"
        )
