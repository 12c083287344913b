"""The estimator: one pass over the data (two for EKFAC) from a model to its curvature."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..curvature_arguments import CurvatureArguments
from ..errors import CurvatureError
from ..files import path_of
from .accumulators import LayerChangedError
from .batches import Collate, refuse_other_data
from .blocks import Curvature
from .discovery import refuse, survey, unwrapped
from .modes import frozen
from .objective import Forward, PositionMask, default_forward, default_position_mask
from .passes import Estimate
from .rare_tokens import unknown_token

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
    log-likelihood. The model runs in evaluation mode and without autocast, no weight gradient is
    computed (except, per example, for diagonals), and the result depends neither on the batch size
    nor on the number of processes: with ``torch.distributed`` initialised each process takes its
    share of the examples and all return the same curvature. A model that makes something else of an
    example in a batch than of it alone, without padding, gets one example at a time.

    Kronecker factors (Martens & Grosse 2015; Eschenhagen et al. 2023, arXiv:2311.00636), for
    inputs a and output gradients g at the R positions of each of N examples:

    * ``expand``: A = mean over positions of a aᵀ, G = mean over examples of Σ_r g_r g_rᵀ;
    * ``reduce``: A = mean of ā āᵀ with ā the mean over positions, G = mean of (Σ_r g)(Σ_r g)ᵀ;
    * ``average``: as ``expand``, but G is a mean over positions too (McInerney et al. 2021);
    * ``centred``: two products, of what the positions of an example differ by and of what they have
      in common, each with the partial traces of that part of F: for rankers, whose candidates share
      a softmax.

    Layer normalisation always has a diagonal curvature, and so has every layer whose rule does not
    tell which positions count. A parameter that no rule covers, or that the model reads in another
    way than its rule expects, has its exact diagonal by one more forward and backward pass of every
    example alone; ``fallback="refuse"`` refuses it instead. A batch size of 1 leaves more layers
    their factors: what a model computes once for a whole batch is then the example's own.

    Args:
        model: At the parameters to be remembered. What ``torch.compile`` or DDP wraps is taken out;
            a sharded model is refused.
        dataset: Examples by index, with a length; columns that the model does not read are left
            out where the collator cannot do with them.
        data_collator: Makes a batch of tensors of a list of examples.
        args: Kind, labels, sharing, ignored parameters and sizes.
        forward: Runs the model on a batch; the default expects a ``logits`` output.
        position_mask: Says which positions of a batch count: one mask for all layers, or masks by
            glob patterns of modules' names. By default those of an encoder-decoder model have its
            source's in the encoder and in keys and values of cross-attention, and its target's in
            the decoder.
        checkpoint_dir: A folder of this estimate alone, the same for all processes: its progress
            is kept there, so that the same call goes on after a kill, to the same result; deleted
            at the end.
        checkpoint_seconds: How much work a kill may cost.

    Returns:
        The curvature, in float32 or the model's wider dtype, on the model's device.

    Raises:
        CurvatureError: A sharded model, a data set that is empty or has no examples by index,
            logits that are no scores of the labels, an F that is 0 everywhere, a checkpoint of
            another estimate, or, with ``fallback="refuse"``, a parameter that no rule covers.

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
    for name, function in (("forward", forward), ("position_mask", position_mask)):
        if not callable(function):
            raise CurvatureError(f"{name} is a {type(function).__name__}; give a function")
    folder = None if checkpoint_dir is None else path_of(checkpoint_dir)
    model = unwrapped(model)
    refuse_other_data(dataset)
    found = survey(model, args.ignore)
    if not found.layers and not found.without_rule:
        raise CurvatureError(
            f"{type(model).__name__} has no trainable parameter outside `ignore`, so there is no "
            "curvature to estimate; make some trainable"
        )
    if found.without_rule and args.fallback == "refuse":
        refuse(found.without_rule)
    indices = _choose_examples(len(dataset), args)
    args = replace(args, unknown_token_id=unknown_token(args, data_collator, len(indices)))
    collate = Collate(model, data_collator, forward is not default_forward)
    run = Estimate(
        model,
        dataset,
        collate,
        args,
        forward,
        position_mask,
        found.layers,
        indices,
        dict(found.without_rule),
    )
    autocast = torch.autocast(run.device.type, enabled=False)
    keeps_all = torch.autograd.graph.disable_saved_tensors_hooks("torch.utils.checkpoint is on")
    with torch.inference_mode(False), autocast, keeps_all, frozen(model):
        while True:
            try:
                curvature = run.estimate(found.ignored, folder, checkpoint_seconds)
            except LayerChangedError as change:
                run.give_up(change)
            except RuntimeError as error:
                if "torch.utils.checkpoint" not in str(error):  # ours, or of a reentrant one
                    raise
                raise CurvatureError(
                    f"{type(model).__name__} checkpoints activations in evaluation mode too, which "
                    "computes its layers anew where no hook sees them; switch it off for the "
                    "estimate, and take smaller batches"
                ) from error
            else:
                run.tell(curvature)
                return curvature


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
