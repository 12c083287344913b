"""Probes in training: how far the model is from what earlier ones said, as a loss and as a measure.

Both compare it without dropout, as the earlier models were when they said it: then nothing is lost
at the start, and no random number is drawn that the training would miss.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from accelerate.utils import is_compiled_module
from torch import Tensor, nn
from transformers import Trainer

from ..curvature.modes import evaluating
from ..curvature.objective import Forward
from ..dataset import random_numbers_kept
from ..errors import ConsolidationError
from ..priors import ConsolidationPrior
from ..probes import Divergences, Probes, digest_of
from ..probes.caching import refuse_random
from ..probes.inputs import collated
from ..probes.probes import Collator
from .adapters import plain_name
from .budget import MOST, Budget
from .config import PenaltySettings
from .fitting import has_another_head
from .processes import reshard, whole
from .resuming import ConsolidationState
from .scale import averages_kept
from .steps import numbered

__all__ = ["ProbeOrder", "ProbedTask", "Probing", "probes_by_task"]

logger = logging.getLogger(__name__)

_LOOKED_AT = 32
"""Probes of an earlier task that are collated twice, to see whether they are the same."""
_MOST_MEASURED = 256
"""Probes of an earlier task of which is measured what is forgotten."""
_SAME, _SAME_IN_FEW_BITS = 1e-3, 0.05
"""Nats up to which a model's outputs are those that were kept, by the precision it computes in."""


class ProbeOrder:
    """Which probes are in which step, by nothing but the seed: all, shuffled, again and again."""

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._seed = count, seed
        self._shuffled: tuple[int, list[int]] = -1, []

    def __call__(self, step: int, size: int) -> list[int]:
        """Return the probes of a step."""
        places = range(step * size, (step + 1) * size)
        return [self._round(place // self._count)[place % self._count] for place in places]

    def _round(self, number: int) -> list[int]:
        if self._shuffled[0] != number:
            draw = np.random.default_rng([self._seed, number])
            self._shuffled = number, draw.permutation(self._count).tolist()
        return self._shuffled[1]


class ProbedTask(NamedTuple):
    """An earlier task's probes.

    Args:
        name: Of the task.
        probes: Those that are trained on.
        order: Of these.
        held_out: Those that measure; none if nothing is held out.
    """

    name: str
    probes: Probes
    order: ProbeOrder
    held_out: Probes | None


class Probing:
    """What a Trainer does with probes.

    Each optimizer step has a forward and a backward pass of its own for them, before the task's
    last ones, in parts no larger than a micro-batch: so the memory needed is that of the larger
    of both, and not their sum. The model that DDP wraps is called without it, which reduces the
    sum of all gradients when the task's are there; FSDP2 reduces the probes' by themselves.

    Attributes:
        tasks: The earlier tasks.
        budget: What may be forgotten of them, if there is a limit.
    """

    def __init__(
        self,
        trainer: Trainer,
        given: Mapping[str, Probes],
        settings: PenaltySettings,
        collator: Collator,
        forward: Forward,
    ) -> None:
        self._trainer, self._settings = trainer, settings
        self._collator, self._forward = collator, forward
        args = trainer.args
        self._seed: int = args.seed if args.data_seed is None else args.data_seed
        self.tasks = [self._split(name, probes) for name, probes in given.items()]
        self._refuse_random()
        self._given, limit = dict(given), settings.forgetting_budget
        self.budget: Budget | None = None
        if limit is not None:
            if not any(task.held_out for task in self.tasks):
                logger.warning(
                    "No probes are held out: a budget of %g nats goes by those that are trained "
                    "on, and nothing measures what is forgotten; give more, or raise "
                    "probe_held_out.",
                    limit,
                )
            self.budget = Budget(limit, trainer.state.max_steps)
            ConsolidationState.go_on(trainer.state, self.budget)
        self._sum: Tensor | None = None
        self._steps = 0
        # Where a training goes on, what was measured stands in its log.
        self._measured_at: int | None = trainer.state.global_step or None

    def _refuse_random(self) -> None:
        """Refuse a collator that masks at random: the anchor has said nothing of such inputs."""
        with random_numbers_kept(self._seed):
            for task in self.tasks:
                rows = task.probes.rows[:_LOOKED_AT]
                refuse_random(*(collated(list(rows), self._collator) for _ in range(2)))

    @property
    def share(self) -> int:
        """How many probes of each earlier task a process has in a step."""
        parts = len(self.tasks) * self._trainer.accelerator.num_processes
        share: int = math.ceil(self._settings.probe_batch_size / parts)
        return share

    def backward(self) -> Tensor | None:
        """Add the gradient of one optimizer step to the parameters'; None if it has no probes.

        Returns:
            μ Σ_i KL_i without gradient, such that its mean over the processes is the whole.
        """
        settings, step = self._settings, self._trainer.state.global_step
        self._steps += 1
        if not settings.probe_weight or (step + 1) % settings.probe_every:
            return None
        accelerator = self._trainer.accelerator
        processes, values, weights = accelerator.num_processes, list[Tensor](), list[float]()
        with self._as_in_evaluation(step):
            for task in self.tasks:
                everyone = task.order(step // settings.probe_every, processes * self.share)
                total = int(task.probes.decisions[everyone].sum())
                weight = settings.probe_every * settings.probe_weight * self.factor(task.name)
                value = torch.zeros((), device=self._trainer.args.device)
                for part in self._parts(everyone[accelerator.process_index :: processes]):
                    found = self._divergences(task.probes, part)
                    loss = found.loss * (processes * len(found.each) / total)
                    accelerator.backward(weight * loss)
                    value += loss.detach().to(value)
                values.append(value)
                weights.append(weight)
        divergences = torch.stack(values)
        value = (divergences * divergences.new_tensor(weights)).sum()
        self._sum = value if self._sum is None else self._sum + value
        if self.budget is not None:
            means = accelerator.reduce(divergences, "mean") if processes > 1 else divergences
            for task, divergence in zip(self.tasks, means.tolist(), strict=True):
                self.budget.learn(task.name, divergence, settings.probe_every)
        return value

    def factor(self, task: str) -> float:
        """Return by what the budget multiplies an earlier task's weight."""
        return 1.0 if self.budget is None else self.budget.factor(task)

    def factors_of(self, priors: Sequence[ConsolidationPrior]) -> list[float]:
        """Return the budget's factors of strengths: of a prior without probes, the largest."""
        names = {id(probes): name for name, probes in self._given.items()}
        own = [names.get(id(prior.probes)) for prior in priors]
        most = 1.0 if self.budget is None else self.budget.largest
        return [most if name is None else self.factor(name) for name in own]

    def mean_loss(self) -> float:
        """Return the mean of their part of the loss over the steps since it was last asked for."""
        total, steps = self._sum, self._steps
        self._sum, self._steps = None, 0
        if total is None:  # in all processes
            return 0.0
        if self._trainer.accelerator.num_processes > 1:
            total = cast(Tensor, self._trainer.accelerator.reduce(total, "mean"))
        return total.item() / steps

    def weights(self) -> dict[str, float]:
        """Return each earlier task's weight by now, to be logged, where a budget sets it."""
        if self.budget is None:
            return {}
        own = [self._settings.probe_weight * self.factor(task.name) for task in self.tasks]
        names = [f"probe_weight_{task.name}" for task in self.tasks]
        several = dict(zip(names, own, strict=True)) if len(own) > 1 else {}
        return {"probe_weight": sum(own) / len(own)} | several

    def measure(self) -> dict[str, float]:
        """Return what is forgotten by now, of the probes that are held out.

        Returns:
            ``forgetting``, the mean of KL(p_i ‖ p) in nats over decisions, and
            ``changed_decisions``, the share of those that another class is the likeliest in; means
            over the earlier tasks, and those of each if there are several.
        """
        found = {}
        for task in self.tasks:
            if task.held_out is not None:
                found[task.name] = self._measure(task.held_out)
                if self.budget is not None and self._trainer.state.global_step:
                    every = self._settings.forgetting_every
                    self.budget.measure(task.name, found[task.name][0], every)
        means = np.mean(list(found.values()), axis=0).tolist()
        self._measured_at = self._trainer.state.global_step
        names = ("forgetting", "changed_decisions")
        logs: dict[str, float] = dict(zip(names, means, strict=True))
        if len(found) > 1:
            for task_name, values in found.items():
                logs |= {f"{n}_{task_name}": v for n, v in zip(names, values, strict=True)}
        return logs

    def log_if_due(self, *, at_an_end: bool = False) -> None:
        """Measure and log, if it is time.

        Raises:
            ConsolidationError: At the beginning, the probes are of another kind of model, or are
                computed in another way.
        """
        trainer, every = self._trainer, self._settings.forgetting_every
        step = trainer.state.global_step
        is_time = self._measured_at != step if at_an_end else bool(every) and step % every == 0
        if not is_time or not any(task.held_out for task in self.tasks):
            return
        found = self.measure()
        if not step:
            self.check(found)
        elif at_an_end:
            self._tell_what_is_over(found)
        is_due = trainer.control.should_log
        with averages_kept(trainer):
            trainer.log(found)
        trainer.control.should_log = is_due  # the Trainer's own log comes yet

    def _tell_what_is_over(self, end: Mapping[str, float]) -> None:
        """Say which earlier task has lost more than its budget, though held as much as may be."""
        limit = self._settings.forgetting_budget
        if limit is None:
            return
        for task in self.tasks:
            if task.held_out is None:
                continue
            forgotten = end.get(f"forgetting_{task.name}", end["forgetting"])
            if forgotten > limit and self.factor(task.name) >= MOST:
                logger.warning(
                    "The budget of %g nats is not kept: of '%s' %.3g are forgotten at %g times the "
                    "weight, which is the most; raise probe_weight or forgetting_budget.",
                    limit,
                    task.name,
                    forgotten,
                    MOST,
                )

    def check(self, start: Mapping[str, float]) -> None:
        """Look before the first step whether the probes are of the model that is trained.

        Raises:
            ConsolidationError: They are of another kind of model, or are computed in another way.
        """
        module = self._plain
        values = {plain_name(n): whole(p) for n, p in module.named_parameters()}
        for task in self.tasks:
            known = {plain_name(n): d for n, d in task.probes.anchor_digests.items()}
            shared = known.keys() & values.keys()
            if len(shared) < len(known) / 2:
                lost = next(name for name in known if name not in shared)
                raise ConsolidationError(
                    f"the probes of '{task.name}' are of a model with other parameters, as {lost}; "
                    f"give those that were made of {type(module).__name__}"
                )
            if task.held_out is None:  # nothing was measured of it
                continue
            forgotten = start.get(f"forgetting_{task.name}", start["forgetting"])
            mixed = self._trainer.accelerator.mixed_precision in ("fp16", "bf16", "fp8")
            dtype = next(iter(values.values())).dtype
            few_bits = mixed or dtype not in (torch.float32, torch.float64)
            if forgotten <= (_SAME_IN_FEW_BITS if few_bits else _SAME):
                continue
            moved = sum(digest_of(values[name]) != known[name] for name in shared)
            added = sum(_adds(n, value) for n, value in values.items() if n not in known)
            if known and not moved and not added:
                raise ConsolidationError(
                    f"{type(module).__name__} is the model that the probes of '{task.name}' were "
                    f"made of, and says something else of them ({forgotten:.3g} nats); give the "
                    "`probe_forward` and `probe_collator` that they were made with"
                )
            logger.warning(
                "The training starts %.3g nats from what the model of '%s' said of the probes, "
                "with %d of %d parameters moved%s: right if other tasks were learnt since; if not, "
                "give probes of this model.",
                forgotten,
                task.name,
                moved,
                len(known),
                f" and {added} added" if added else "",
            )

    @property
    def _plain(self) -> nn.Module:
        trainer = self._trainer
        return cast(
            nn.Module, trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        )

    @property
    def _module(self) -> nn.Module:
        """The model to train, compiled if it is so, without DDP."""
        wrapped = self._trainer.model_wrapped
        is_alone = self._trainer.accelerator.num_processes == 1
        return wrapped if is_alone and is_compiled_module(wrapped) else self._plain

    def _split(self, name: str, probes: Probes) -> ProbedTask:
        held_out: Probes | None = None
        if count := round(self._settings.probe_held_out * len(probes)):
            probes, held_out = probes.split(count, self._seed)
            if len(held_out) > _MOST_MEASURED:
                held_out, _ = held_out.split(len(held_out) - _MOST_MEASURED, self._seed)
        return ProbedTask(name, probes, ProbeOrder(len(probes), self._seed), held_out)

    @torch.no_grad()
    def _measure(self, probes: Probes) -> tuple[float, float]:
        accelerator = self._trainer.accelerator
        processes, indices = accelerator.num_processes, list(range(len(probes)))
        is_shared = processes > 1 and len(indices) >= processes
        if is_shared:  # all have equally many: FSDP2 gathers parameters in each of their passes
            indices = indices[: len(indices) // processes * processes]
            indices = indices[accelerator.process_index :: processes]
        sums = torch.zeros(3, dtype=torch.float64)
        with self._as_in_evaluation(0):
            for part in self._parts(indices):
                found = self._divergences(probes, part)
                here = found.each.sum(), found.changed.sum(), torch.tensor(len(found.each))
                sums += torch.stack([x.cpu().double() for x in here])
        reshard(self._plain)
        if is_shared:
            sums = cast(Tensor, accelerator.reduce(sums.to(self._trainer.args.device))).cpu()
        nats, changed, count = sums.tolist()
        return nats / max(1, count), changed / max(1, count)

    def _parts(self, indices: Sequence[int]) -> Iterator[list[int]]:
        size: int = self._trainer._train_batch_size
        for start in range(0, len(indices), size):
            yield list(indices[start : start + size])

    def _divergences(self, probes: Probes, indices: Sequence[int]) -> Divergences:
        module = self._module if torch.is_grad_enabled() else self._plain
        with self._trainer.compute_loss_context_manager():
            return probes.loss(
                module,
                indices,
                self._collator,
                forward=self._forward,
                temperature=self._settings.probe_temperature,
            )

    @contextmanager
    def _as_in_evaluation(self, step: int) -> Iterator[None]:
        """Switch dropout off, and keep random numbers, as of a collator, from the training's."""
        with evaluating(self._plain), random_numbers_kept(self._seed + step):
            yield


def _adds(name: str, value: Tensor) -> bool:
    """Whether a parameter that the anchor had not changes anything: LoRA's B·A does by its B."""
    is_idle = any(part in name for part in (".lora_A.", ".original_module."))
    return not is_idle and bool(value.any())


def probes_by_task(
    priors: Sequence[ConsolidationPrior],
    given: Probes | Sequence[Probes] | None,
    model: nn.Module,
    ignore: Sequence[str] | None,
) -> dict[str, Probes]:
    """Return the probes of each earlier task: those that its prior carries, and others.

    Args:
        priors: Of earlier tasks. The probes of one whose head ``ignore`` leaves free are left out
            where the model has another one now.
        given: Other probes; the same ones as a prior's are not taken twice.
        model: The model to be trained, unwrapped.
        ignore: What is not held.

    Raises:
        ConsolidationError: Something else than probes.
    """
    own = list[tuple[str, Probes]]()
    for prior in priors:
        if prior.probes is not None and has_another_head(prior, model, ignore):
            logger.warning(
                "The probes of '%s' are left out: the head that `ignore` leaves free is another "
                "than theirs. The prior's penalty holds the rest of the model.",
                prior.task,
            )
        elif prior.probes is not None:
            own.append((prior.task, prior.probes))
    more: list[Any] = (
        list(given) if isinstance(given, list | tuple) else [given] * (given is not None)
    )
    for probes in more:
        if not isinstance(probes, Probes):
            raise ConsolidationError(
                f"`probes` holds a {type(probes).__name__}; give Probes, as of Probes.from_dataset"
            )
    known = {probes.fingerprint for _, probes in own}
    own += [("probes", probes) for probes in more if probes.fingerprint not in known]
    return dict(zip(numbered([name for name, _ in own]), [p for _, p in own], strict=True))
