"""``ConsolidationTrainer``: the Trainer whose loss remembers earlier tasks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from ..curvature.objective import Forward
from ..errors import ConsolidationError
from ..priors import ConsolidationPrior
from ..probes import Probes, unlabelled_forward
from ..probes.probes import Collator
from .arguments import ConsolidationArguments
from .buffers import BufferWatch
from .config import PENALTY_DTYPES, ConsolidationConfig
from .drawing import draw_forgetting
from .fitting import as_priors, fit, refuse_compiled, refuse_idle
from .penalty import ConsolidationPenalty
from .probing import Probing, probes_by_task
from .processes import problem_of_sharding, undo_evaluation
from .resuming import PLAIN, ConsolidationState, identity_of, order_of, refuse_other
from .scale import LossScale
from .steps import ConsolidationSteps, numbered
from .strengths import NewLabels, bayesian_strength, strengths_for

__all__ = ["ConsolidationMixin", "ConsolidationTrainer"]

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


class ConsolidationMixin(_Base):
    """Adds what holds earlier tasks to the training loss of any Trainer subclass.

    Put it before the Trainer: ``class MyTrainer(ConsolidationMixin, Seq2SeqTrainer)``. The total
    loss of an optimizer step is ``mean task loss + Σ_i λ_i Δᵀ F_i Δ`` (McInerney et al. 2021,
    Eq. 4) ``+ μ Σ_i KL(p_i ‖ p)``, p_i being what the model of the i-th earlier task said of
    probes and p what this one says: both enter once per optimizer step, whatever the gradient
    accumulation and the number of processes, and never in evaluation. They are logged as
    ``penalty``, ``penalty_<task>`` and ``probe_loss``, the task's own part of ``loss`` as
    ``task_loss``. Without priors and probes it is the plain Trainer.

    The penalty is added to what ``compute_loss`` returns, so a subclass overrides that as in any
    Trainer. The model may have LoRA adapters of PEFT on the weights that a prior of the plain
    model knows. Running statistics, as BatchNorm's, stay at the model's present ones.

    Probes have forward passes of their own, without dropout: the earlier models said what they
    said without it, so nothing is lost at the start and the training's random numbers are
    untouched. Those that are held out measure what is forgotten: ``forgetting``, their KL in nats,
    and ``changed_decisions``, the share of other likeliest classes, are logged beside.

    DDP refuses a gradient of a parameter that the forward pass does not use: if a prior covers
    one, set ``ddp_find_unused_parameters=False``.

    Args:
        args: Positional arguments of the Trainer.
        priors: One for each earlier task, or where it is: a folder, or ``"org/name"`` on the Hub.
            None gives plain fine-tuning.
        probes: Probes of an earlier task, or several, beside those that the priors carry.
        probe_collator: Makes batches of probes; the data collator if it needs no labels.
        probe_forward: The ``forward`` that the probes were made with, if one was given.
        consolidation: Beside any other ``args`` than ConsolidationArguments, which have their own.
        kwargs: Keyword arguments of the Trainer.

    Raises:
        PriorError: A prior does not fit the model.
        ProbeError: Probes do not fit it.
        ConsolidationError: Strengths that do not match the priors, or a set-up under which the
            penalty would be wrong (DeepSpeed, FSDP1).
    """

    probe_forward: Forward = staticmethod(unlabelled_forward)

    def __init__(
        self,
        *args: Any,
        priors: Sequence[ConsolidationPrior | str | Path]
        | ConsolidationPrior
        | str
        | Path
        | None = (),
        probes: Probes | Sequence[Probes] | None = (),
        probe_collator: Collator | None = None,
        probe_forward: Forward | None = None,
        consolidation: ConsolidationConfig | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(consolidation, ConsolidationConfig | None):
            raise ConsolidationError(
                f"`consolidation` is a {type(consolidation).__name__}; give a ConsolidationConfig"
            )
        self._consolidation = consolidation
        super().__init__(*args, **kwargs)
        if consolidation is not None and isinstance(self.args, ConsolidationArguments):
            raise ConsolidationError(
                "ConsolidationArguments have settings of their own; give TrainingArguments beside "
                "`consolidation`"
            )
        self.priors = as_priors(priors)
        ignore = replace(self.consolidation).ignore
        self.probes = probes_by_task(self.priors, probes, self._plain_model(), ignore)
        self._probe_collator = probe_collator
        if probe_forward is not None:
            self.probe_forward = probe_forward
        self._new_labels = NewLabels(self)
        self._penalty: ConsolidationPenalty | None = None
        self._penalty_sum: Tensor | None = None
        self._penalty_steps = 0
        self._settings = self._given = self.consolidation
        self._buffers: BufferWatch | None = None
        self._probing: Probing | None = None
        self._refuse_unsupported()
        if self.priors or self.probes:
            self._check_priors()
            self.add_callback(ConsolidationSteps(self))
            # Labels are not counted before the training: _begin says what the strengths are.
            is_known = not self.priors or self.consolidation.strengths is not None
            self.add_callback(ConsolidationState(self._identity() if is_known else {}))

    @property
    def consolidation(self) -> ConsolidationConfig:
        """The settings; a change of them, or of ``args``, counts from the next training on."""
        if isinstance(self.args, ConsolidationArguments):
            return self.args.consolidation
        if self._consolidation is None:
            self._consolidation = ConsolidationConfig()
        return self._consolidation

    @property
    def strengths(self) -> list[float]:
        """λ of each prior by the present settings; by default the Bayesian ones."""
        given = replace(self.consolidation).strengths  # a change is looked at too
        if given is not None:
            return strengths_for(given, self.priors)
        return [bayesian_strength(prior, self._new_labels()) for prior in self.priors]

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
            ConsolidationError: The checkpoint was started with other priors or settings, or the
                training goes past the penalty.
        """
        checkpoint = resume_from_checkpoint
        if checkpoint is True:
            checkpoint = get_last_checkpoint(self.args.output_dir)  # type: ignore[no-untyped-call]
        if checkpoint:
            refuse_other(self._identity() | self._order(), Path(checkpoint) / TRAINER_STATE_NAME)
        if self.accelerator.num_processes > 1:
            undo_evaluation(cast(nn.Module, self.model))
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Do the Trainer's step with the penalty in the loss, if an optimizer step is complete.

        Args:
            args: As in the Trainer.
            kwargs: As in the Trainer.
        """
        if not self._holds:
            return super().training_step(*args, **kwargs)
        if self._buffers is None:
            self._begin()  # a step by itself, without train()
        self._completes = self.accelerator.sync_gradients
        if self.priors:
            self._make_penalty()  # FSDP2 has unsharded copies after a forward pass
        is_due = self._completes and self._probing is not None
        remembered = cast(Probing, self._probing).backward() if is_due else None
        # Around compute_loss, whoever overrides it; not in its place: it is evaluated too.
        own, compute_loss = vars(self).get("compute_loss"), self.compute_loss
        vars(self)["compute_loss"] = partial(self._consolidated_loss, compute_loss)
        try:
            loss = super().training_step(*args, **kwargs)
            return loss if remembered is None else loss + remembered.to(loss)
        finally:
            vars(self).pop("compute_loss")
            vars(self).update({} if own is None else {"compute_loss": own})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the parts of the loss to the training log.

        Args:
            logs: Values to log.
            start_time: Start of training.
        """
        if "loss" in logs and self._penalty_steps:
            means, names = self._mean_penalties(), numbered([prior.task for prior in self.priors])
            parts = {"penalty": sum(means)} if self.priors else {}
            if self._probing is not None:
                parts["probe_loss"] = self._probing.mean_loss()
                logs |= self._probing.weights()
            logs |= parts | {"task_loss": logs["loss"] - sum(parts.values())}
            logs |= {f"penalty_{task}": v for task, v in zip(names, means, strict=True)}
            self._penalty_sum, self._penalty_steps = None, 0
            self._tell_what_goes_wrong(means)
        super().log(logs, start_time)

    def plot_forgetting(self, path: str | Path) -> None:
        """Draw what was forgotten while training, as far as probes measured it.

        Args:
            path: Of the picture, as ``forgetting.svg``.

        Raises:
            ConsolidationError: Nothing was measured, or matplotlib is not installed.
        """
        draw_forgetting(self.state.log_history, path, self._settings.forgetting_budget)

    def _tell_what_goes_wrong(self, means: Sequence[float]) -> None:
        """Say what a log of numbers does not: a penalty without bounds, settings without effect."""
        if not all(map(math.isfinite, means)):
            logger.warning(
                "The penalty is %s, and a training learns nothing by it; take lower strengths or a "
                "lower learning rate.",
                means,
            )
        if (now := replace(self.consolidation)) != self._given:  # in the form that it is read in
            logger.warning(
                "Settings of the consolidation that change while a model is trained "
                "count from the next training on."
            )
            self._given = now

    def _hp_search_setup(self, trial: Any) -> None:
        """Take what a search suggests for the settings too, where they stand beside the args."""
        super()._hp_search_setup(trial)
        if trial is None or getattr(self, "hp_search_backend", None) is None:
            return
        if not isinstance(self.args, ConsolidationArguments):
            suggested: dict[str, Any] = trial if isinstance(trial, dict) else self.hp_space(trial)
            ours = {f.name for f in fields(ConsolidationConfig)} & suggested.keys()
            own: dict[str, Any] = {name: suggested[name] for name in ours}
            self._consolidation = replace(self.consolidation, **own)

    def _begin(self) -> None:
        """Read the settings: a search has changed them, a retry begins with another batch size."""
        self._given = replace(self.consolidation)
        self._settings = replace(self._given, strengths=self.strengths)
        self._check_priors()
        self._penalty = None  # wrapping may give the model new parameters
        self._penalty_sum, self._penalty_steps, self._completes = None, 0, False
        self._scale = LossScale(self)
        if self.probes:
            collator = self._probe_collator or self.data_collator
            self._probing = Probing(self, self.probes, self._settings, collator, self.probe_forward)
        self._buffers = BufferWatch(self._plain_model(), self._settings.ignore)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ConsolidationState):
                callback.identity = self._identity() | self._order()
                callback.budget = None if self._probing is None else self._probing.budget

    @property
    def _holds(self) -> bool:
        """Whether a step has a penalty or probes; without, it is the plain Trainer's."""
        return bool(self.priors or (self.probes and self._settings.probe_weight))

    def _measure(self, at_an_end: bool) -> None:
        if self._probing is not None:
            self._probing.log_if_due(at_an_end=at_an_end)

    def _look_at_step(self) -> None:
        """Refuse a training that goes past the penalty, or moves what no penalty holds."""
        if not self._holds:
            return
        if not self._penalty_steps:
            owner = next(c.__name__ for c in type(self).__mro__ if "training_step" in vars(c))
            raise ConsolidationError(
                f"the first optimizer step had no penalty: {owner}.training_step goes past the "
                "Trainer's; let it call super().training_step(...), or override compute_loss"
            )
        assert self._buffers is not None
        self._buffers.check(self._plain_model())

    def _consolidated_loss(
        self,
        compute_loss: Callable[..., Any],
        model: nn.Module,
        inputs: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Return the loss, plus the penalty in the last micro-batch of an optimizer step."""
        assert self._buffers is not None
        self._buffers.hold()
        scale, items = self._scale, kwargs.get("num_items_in_batch")
        is_scaled = scale.is_scaled(items)
        # The Trainer has no number before train(): a step by itself is of one micro-batch.
        parts = getattr(self, "current_gradient_accumulation_steps", 1)
        if items is not None and scale.is_in_doubt(items):

            def loss_of(items: Tensor | int) -> Any:
                return compute_loss(
                    model, dict(inputs), *args, **kwargs | {"num_items_in_batch": items}
                )

            scale.try_out(loss_of, items, model)
            self._buffers.hold()
        if is_mean := scale.is_mean(items):
            kwargs["num_items_in_batch"] = None
        # A training step of one's own may compute more than one loss.
        completes, self._completes = self._completes, False
        self._penalty_steps += completes
        every = self._settings.penalty_every
        due = completes and bool(self.priors) and (self.state.global_step + 1) % every == 0
        penalty = self._make_penalty() if due else None
        if penalty is not None and self._probing is not None:
            penalty.factors = self._probing.factors_of(self.priors)
        embeddings = penalty.of_embeddings() if penalty is not None else None
        result = compute_loss(model, inputs, *args, **kwargs)
        loss, *outputs = result if isinstance(result, tuple) else (result,)
        if is_mean:
            loss = loss / parts
        if penalty is not None:
            value, per_prior = penalty(embeddings)
            # Summed on the device: reading a value here would wait for it in every step.
            previous = 0.0 if self._penalty_sum is None else self._penalty_sum
            self._penalty_sum = previous + every * per_prior
            # training_step divides what is not scaled by the number of accumulated micro-batches.
            loss = loss + every * (1 if is_scaled else parts) * value.to(loss.device)
        return (loss, *outputs) if isinstance(result, tuple) else loss

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        if self.priors or self.probes:
            self._settings.save_pretrained(output_dir or cast(str, self.args.output_dir))

    def _check_priors(self) -> None:
        """Make sure that priors and settings fit the model and each other."""
        config, model = replace(self.consolidation), self._plain_model()
        if config.strengths is not None:
            strengths_for(config.strengths, self.priors)
        elif self.train_dataset is not None:  # said now; labels are counted when asked for
            for prior in self.priors:
                bayesian_strength(prior, self._new_labels.examples)
        for prior in self.priors:
            fit(prior, model, config.ignore, config.added_rows)
            merged_for = prior.provenance.merge_damping
            if merged_for not in (None, config.damping):
                logger.warning(
                    "Prior '%s' was merged for damping %g and is used with %g: its anchor is off; "
                    "merge with the damping of the training.",
                    prior.task,
                    merged_for,
                    config.damping,
                )
        if config.forgetting_budget is not None and not self.probes:
            raise ConsolidationError(
                "`forgetting_budget` is measured on probes, and the priors have none; give "
                "`probes` beside them or leave it out"
            )
        refuse_idle("ignore", config.ignore, model, self.priors)
        refuse_idle("added_rows", config.added_rows, model, self.priors)

    def _plain_model(self) -> nn.Module:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return cast(nn.Module, model)

    def _make_penalty(self) -> ConsolidationPenalty:
        """Return the penalty, made before a first forward: FSDP2 has unsharded copies after it."""
        if self._penalty is not None:
            return self._penalty
        args, config = self.args, self._settings
        penalty = ConsolidationPenalty(
            self._plain_model(),
            self.priors,
            config.strengths or [],
            config.damping,
            dtype=PENALTY_DTYPES[config.penalty_dtype],
            distribute=self.accelerator.num_processes > 1,
            ignore=config.ignore,
            added_rows=config.added_rows,
        )
        logger.info(
            "Process %d multiplies %d of the priors' %d blocks, in %s.",
            args.process_index,
            penalty.num_own,
            penalty.num_blocks,
            config.penalty_dtype,
        )
        self._penalty = penalty
        return penalty

    def _mean_penalties(self) -> list[float]:
        """The mean of each prior's penalty over the steps since the last log, and the processes."""
        if self._penalty_sum is None:
            return [0.0] * len(self.priors)
        means = self._penalty_sum / self._penalty_steps
        if self.accelerator.num_processes > 1:
            means = self.accelerator.reduce(means, "mean")
        return cast(list[float], means.tolist())

    def _refuse_unsupported(self) -> None:
        problem = problem_of_sharding(self.accelerator)
        if problem is not None and (self.priors or self.probes):
            raise ConsolidationError(f"the penalty would be wrong: {problem}")
        if (self.priors or self.probes) and self.args.remove_unused_columns:
            refuse_compiled(self.model)

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be continued, and whence the priors came."""
        if not self.priors and not self.probes:
            return dict(PLAIN)
        return identity_of(self.priors, self.strengths, self.consolidation, self.probes)

    def _order(self) -> dict[str, Any]:
        return order_of(self) if self.priors or self.probes else {}


class ConsolidationTrainer(ConsolidationMixin, Trainer):
    """The plain Trainer with :class:`ConsolidationMixin`: it holds on to earlier tasks.

    Example:
        >>> trainer = ConsolidationTrainer(  # doctest: +SKIP
        ...     model,
        ...     ConsolidationArguments("runs/tier2", strengths=[0.5], damping=0.1),
        ...     priors=[ConsolidationPrior.from_pretrained("runs/tier1/prior")],
        ...     train_dataset=train,
        ...     data_collator=collator,
        ... )
    """
