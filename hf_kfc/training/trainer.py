"""``ConsolidationTrainer``: the Trainer whose loss remembers earlier tasks."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from ..errors import ConsolidationError
from ..priors import ConsolidationPrior
from .adapters import check_prior
from .arguments import PENALTY_DTYPES, ConsolidationArguments
from .penalty import ConsolidationPenalty, bayesian_strength

__all__ = ["ConsolidationMixin", "ConsolidationTrainer"]

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


PLAIN: dict[str, Any] = {
    "priors": [],
    "damping": None,
    "penalty_every": 1,
}
"""The identity of a run that is plain fine-tuning."""


class ConsolidationMixin(_Base):
    """Adds the consolidation penalty to the ``compute_loss`` of any Trainer subclass.

    Put it before the Trainer: ``class MyTrainer(ConsolidationMixin, Seq2SeqTrainer)``. The total
    loss of an optimizer step is ``mean task loss + Σ_i λ_i Δᵀ F_i Δ`` (McInerney et al. 2021,
    Eq. 4): the penalty enters once per optimizer step, whatever the gradient accumulation and
    the number of processes, and never in evaluation. It is logged as ``penalty`` and
    ``penalty_<task>``, the task's own part of ``loss`` as ``task_loss``.

    The model may have LoRA adapters of PEFT on the weights that a prior of the plain model knows.

    DDP refuses a gradient of a parameter that the forward pass does not use: if a prior covers
    one, set ``ddp_find_unused_parameters=False``.

    Args:
        args: Positional arguments of the Trainer.
        priors: One for each earlier task; none gives plain fine-tuning.
        kwargs: Keyword arguments of the Trainer; ``args`` must be ConsolidationArguments.

    Raises:
        PriorError: A prior does not fit the model.
        ConsolidationError: Strengths that do not match the priors, or a set-up under which the
            penalty would be wrong (DeepSpeed, FSDP1, ``compute_loss_func``).
    """

    # The task loss is a mean over the micro-batch, which the Trainer divides by the number of
    # accumulated ones; it would guess wrongly for heads whose forward takes **kwargs.
    loss_is_scaled_for_ga = False
    args: ConsolidationArguments
    plain_identity = PLAIN

    def __init__(
        self,
        *args: Any,
        priors: Sequence[ConsolidationPrior] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False
        self.priors = list(priors)
        if not isinstance(self.args, ConsolidationArguments):
            raise ConsolidationError(
                f"args is {type(self.args).__name__}; give ConsolidationArguments"
            )
        self._refuse_unsupported()
        for prior in self.priors:
            check_prior(prior, cast(nn.Module, self.model))
            merged_for = prior.provenance.merge_damping
            if merged_for not in (None, self.args.damping):
                logger.warning(
                    "Prior '%s' was merged for damping %g and is used with %g: its anchor is off; "
                    "merge with the damping of the training.",
                    prior.task,
                    merged_for,
                    self.args.damping,
                )
        self.strengths = self._resolve_strengths()
        if self._identity() != self.plain_identity:
            self.add_callback(_ConsolidationState(self._identity()))
        self._penalty: ConsolidationPenalty | None = None
        self._penalty_sum: Tensor | None = None
        self._penalty_steps = 0

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train as the Trainer does; a checkpoint must come from the same set-up.

        Args:
            resume_from_checkpoint: As in the Trainer.
            trial: As in the Trainer.
            ignore_keys_for_eval: As in the Trainer.

        Raises:
            ConsolidationError: The checkpoint was started with other priors or strengths, another
                damping or another ``penalty_every``.
        """
        checkpoint = resume_from_checkpoint
        if checkpoint is True:
            checkpoint = get_last_checkpoint(self.args.output_dir)  # type: ignore[no-untyped-call]
        if checkpoint:
            self._refuse_other_priors(Path(checkpoint) / TRAINER_STATE_NAME)
        if self.accelerator.num_processes > 1:
            self._undo_evaluation()
        self._penalty = None  # wrapping may give the model new parameters
        self._penalty_sum, self._penalty_steps = None, 0
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the task loss, plus the penalty in the last micro-batch of an optimizer step.

        Args:
            model: The (wrapped) model.
            inputs: The batch.
            return_outputs: Whether to return the model's outputs too.
            num_items_in_batch: As in the Trainer.
        """
        training = self.is_in_train and model.training  # it also evaluates while it trains
        completes = bool(self.priors) and training and self.accelerator.sync_gradients
        self._penalty_steps += completes
        every = self.args.penalty_every
        if not completes or (self.state.global_step + 1) % every:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self._penalty is None:
            # Before the forward: FSDP2 swaps the parameters for unsharded copies there.
            self._penalty = self._make_penalty()
        embeddings = self._penalty.of_embeddings()
        result: Any = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, outputs = result if return_outputs else (result, None)
        penalty, per_prior = self._penalty(embeddings)
        # Summed on the device: reading a value here would wait for it in every step.
        previous = 0.0 if self._penalty_sum is None else self._penalty_sum
        self._penalty_sum = previous + every * per_prior
        # training_step divides what it gets by the number of accumulated micro-batches.
        loss = loss + every * penalty.to(loss.device) * self.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the penalty's values to the training log.

        Args:
            logs: Values to log.
            start_time: Start of training.
        """
        if "loss" in logs and self._penalty_steps:
            means = self._mean_penalties()
            logs["penalty"] = sum(means)
            logs["task_loss"] = logs["loss"] - logs["penalty"]
            logs |= {f"penalty_{task}": v for task, v in zip(self._names(), means, strict=True)}
            self._penalty_sum, self._penalty_steps = None, 0
        super().log(logs, start_time)

    def _plain_model(self) -> nn.Module:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return cast(nn.Module, model)

    def _undo_evaluation(self) -> None:
        """Undo what an evaluation before training does to the model in several processes.

        It marks the model as prepared, so that accelerate would not wrap it in DDP and every
        process would train alone. Under FSDP2 it leaves the root's parameters unsharded, so that
        the optimizer would step on temporary copies.
        """
        assert isinstance(self.model, nn.Module)
        vars(self.model).pop("_is_accelerate_prepared", None)
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def _make_penalty(self) -> ConsolidationPenalty:
        args = self.args
        penalty = ConsolidationPenalty(
            self._plain_model(),
            self.priors,
            self.strengths,
            args.damping,
            dtype=PENALTY_DTYPES[args.penalty_dtype],
            distribute=args.distribute_penalty and self.accelerator.num_processes > 1,
            moved_rows_only=args.moved_rows_only,
        )
        logger.info(
            "Process %d multiplies %d of the priors' %d blocks, in %s.",
            args.process_index,
            penalty.num_own,
            penalty.num_blocks,
            args.penalty_dtype,
        )
        return penalty

    def _mean_penalties(self) -> list[float]:
        """The mean of each prior's penalty over the steps since the last log, and the processes."""
        if self._penalty_sum is None:
            return [0.0] * len(self.priors)
        means = self._penalty_sum / self._penalty_steps
        if self.accelerator.num_processes > 1:
            means = self.accelerator.reduce(means, "mean")
        return cast(list[float], means.tolist())

    def _names(self) -> list[str]:
        """Task names, numbered where two priors have the same."""
        count = Counter(prior.task for prior in self.priors)
        return [
            prior.task if count[prior.task] == 1 else f"{prior.task}_{i}"
            for i, prior in enumerate(self.priors)
        ]

    def _resolve_strengths(self) -> list[float]:
        given = self.args.strengths
        if given is None:
            new = len(self.train_dataset) if isinstance(self.train_dataset, Sized) else 0
            return [bayesian_strength(prior, new) for prior in self.priors]
        if len(given) == 1:
            return given * len(self.priors)
        if len(given) != len(self.priors):
            raise ConsolidationError(
                f"{len(given)} strengths were given for {len(self.priors)} priors; give one for "
                "all or one for each"
            )
        return given

    def _refuse_unsupported(self) -> None:
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if self.compute_loss_func is not None:
            problem = "compute_loss_func scales the loss itself; override compute_loss instead"
        elif not self.priors:
            return
        elif self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            problem = "DeepSpeed empties or moves the parameters; use DDP or FSDP2"
        elif plugin is not None and getattr(plugin, "fsdp_version", 2) == 1:
            problem = "FSDP1 flattens the parameters; use fsdp_version=2"
        else:
            return
        raise ConsolidationError(f"the penalty would be wrong: {problem}")

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be continued, and whence the priors came."""
        return {
            "priors": [
                {
                    "task": prior.task,
                    "fingerprint": prior.fingerprint,
                    "source": None if prior.source is None else str(prior.source),
                    "strength": strength,
                }
                for prior, strength in zip(self.priors, self.strengths, strict=True)
            ],
            "damping": self.args.damping if self.priors else None,
            "penalty_every": self.args.penalty_every if self.priors else 1,
        }

    def _refuse_other_priors(self, state_file: Path) -> None:
        if not state_file.is_file():
            return  # the Trainer says what is wrong with the checkpoint
        state = json.loads(state_file.read_text(encoding="utf-8"))
        saved = state.get("stateful_callbacks", {}).get(_ConsolidationState.__name__, {})
        identity = self.plain_identity | saved.get("attributes", {}).get("identity", {})
        if _without_sources(identity) != _without_sources(self._identity()):
            was = [prior["task"] for prior in identity["priors"]]
            raise ConsolidationError(
                f"{state_file.parent} was started with other priors, strengths, damping or "
                f"penalty_every (priors of: {', '.join(was) or 'none'}); resume with the same ones "
                "or start anew"
            )


def _without_sources(identity: dict[str, Any]) -> dict[str, Any]:
    """The same prior may be read from elsewhere when a checkpoint is continued."""
    priors = [{k: v for k, v in prior.items() if k != "source"} for prior in identity["priors"]]
    return {**identity, "priors": priors}


class _ConsolidationState(TrainerCallback, ExportableState):
    """Keeps in every checkpoint which penalty it was trained with."""

    def __init__(self, identity: dict[str, Any]) -> None:
        self.identity = identity

    def state(self) -> dict[str, Any]:
        return {"args": {"identity": self.identity}, "attributes": {"identity": self.identity}}


class ConsolidationTrainer(ConsolidationMixin, Trainer):
    """A Trainer that learns a new task while holding on to earlier ones.

    See :class:`ConsolidationMixin` for what it adds to the Trainer, and raises.

    Example:
        >>> trainer = ConsolidationTrainer(  # doctest: +SKIP
        ...     model,
        ...     ConsolidationArguments("runs/tier2", strengths=[0.5], damping=0.1),
        ...     priors=[ConsolidationPrior.from_pretrained("runs/tier1/prior")],
        ...     train_dataset=train,
        ...     data_collator=collator,
        ... )
    """
