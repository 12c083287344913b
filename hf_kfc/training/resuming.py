"""A checkpoint is continued with the penalty that it was trained with, or refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState, TrainerState

from ..dataset import fingerprint
from ..errors import ConsolidationError
from ..priors import ConsolidationPrior
from ..probes import Probes
from .budget import Budget
from .config import ConsolidationConfig

__all__ = ["PLAIN", "ConsolidationState", "identity_of", "order_of", "refuse_other"]

logger = logging.getLogger(__name__)

_OF_ORDER = ("data", "seed", "sampling")
"""What says which examples come next; of data without a length it is not known."""


class ConsolidationState(TrainerCallback, ExportableState):
    """Keeps in every checkpoint which penalty it had, and how far a budget's rule is."""

    def __init__(self, identity: dict[str, Any], budget: Budget | None = None) -> None:
        self.identity, self.budget = identity, budget

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        progress = {} if self.budget is None else {"progress": self.budget.state()}
        kept = {"identity": self.identity}
        return {"args": kept, "attributes": kept | progress}

    @classmethod
    def go_on(cls, state: TrainerState, budget: Budget) -> None:
        """Continue a budget's rule where a checkpoint was written."""
        if state.global_step:
            callbacks: Any = state.stateful_callbacks
            kept = callbacks.get(cls.__name__, {})
            budget.load(kept.get("attributes", {}).get("progress", {}))


def identity_of(
    priors: Sequence[ConsolidationPrior],
    strengths: Sequence[float],
    config: ConsolidationConfig,
    probes: Mapping[str, Probes],
) -> dict[str, Any]:
    """Return what must be the same for a checkpoint to be continued, and whence the priors came."""
    of_probes = (
        *("probe_weight", "probe_temperature", "probe_batch_size"),
        *("probe_every", "probe_held_out"),
        "forgetting_budget",
    )
    return {
        "priors": [
            {
                "task": prior.task,
                "fingerprint": prior.fingerprint,
                "source": None if prior.source is None else str(prior.source),
                "strength": strength,
            }
            for prior, strength in zip(priors, strengths, strict=True)
        ],
        "damping": config.damping,
        "penalty_every": config.penalty_every,
        "penalty_dtype": config.penalty_dtype,
        "ignore": config.ignore or [],
        "added_rows": config.added_rows or [],
        "probes": [[name, given.fingerprint] for name, given in probes.items()],
        **({name: getattr(config, name) for name in of_probes} if probes else {}),
    }


PLAIN = identity_of((), (), ConsolidationConfig(), {}) | {"damping": None}
"""The identity of a run that is plain fine-tuning."""


def refuse_other(identity: dict[str, Any], state_file: Path) -> None:
    """Make sure that a checkpoint was trained with this penalty.

    Raises:
        ConsolidationError: It was trained with another one; it says in what they differ.
    """
    if not state_file.is_file():
        return  # the Trainer says what is wrong with the checkpoint
    name = ConsolidationState.__name__
    try:
        kept = json.loads(state_file.read_text(encoding="utf-8")).get("stateful_callbacks", {})
        was = PLAIN | kept.get(name, {}).get("attributes", {}).get("identity", {})
        one, two = _compared(was), _compared(identity)
        tasks = ", ".join(prior["task"] for prior in was["priors"])
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        raise ConsolidationError(
            f"{state_file} is damaged ({type(error).__name__}: {error}); resume from another "
            "checkpoint or start anew"
        ) from None
    for name in _OF_ORDER:
        if one.get(name) is None or two.get(name) is None:
            one.pop(name, None), two.pop(name, None)
    was_size, size = one.pop("step_size", None), two.pop("step_size", None)
    if was_size != size and None not in (was_size, size):
        logger.warning(
            "%s was started with %d examples in an optimizer step and goes on with %d: the rest of "
            "its epoch has other examples than it would have had.",
            state_file.parent,
            was_size,
            size,
        )
    if other := [name for name in one | two if one.get(name) != two.get(name)]:
        raise ConsolidationError(
            f"{state_file.parent} was started with other {', '.join(other)} (priors of: "
            f"{tasks or 'none'}); resume with the same ones or start anew"
        )


def order_of(trainer: Trainer) -> dict[str, Any]:
    """Return what says which examples come next: data, seed, sampling and the size of a step.

    Of the data set are read its length and up to 32 examples at equal distances; one whose
    examples change from reading to reading tells its length alone.
    """
    args, data = trainer.args, trainer.train_dataset
    seed = args.seed if args.data_seed is None else args.data_seed
    size = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    return {
        "data": fingerprint(data, seed),
        "seed": [args.seed, seed],
        "sampling": str(args.train_sampling_strategy),
        "step_size": size,
    }


def _compared(identity: dict[str, Any]) -> dict[str, Any]:
    """Tell strengths from priors; the same prior may be read from elsewhere when one goes on."""
    priors = [[prior["task"], prior["fingerprint"]] for prior in identity["priors"]]
    strengths = [prior["strength"] for prior in identity["priors"]]
    return {**identity, "priors": priors, "strengths": strengths}
