"""A checkpoint is continued with the penalty that it was trained with, or refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState, TrainerState

from ..errors import ConsolidationError
from ..priors import ConsolidationPrior
from ..probes import Probes
from .budget import Budget
from .config import ConsolidationConfig

__all__ = ["PLAIN", "ConsolidationState", "identity_of", "refuse_other"]

PLAIN: dict[str, Any] = {
    "priors": [],
    "damping": None,
    "penalty_every": 1,
    "penalty_dtype": "float32",
    "ignore": [],
    "added_rows": [],
    "probes": [],
}
"""The identity of a run that is plain fine-tuning."""


class ConsolidationState(TrainerCallback, ExportableState):
    """Keeps in every checkpoint which penalty it was trained with, and how far a budget's rule is.

    Args:
        identity: See :func:`identity_of`.
        budget: Of the training.
    """

    def __init__(self, identity: dict[str, Any], budget: Budget | None = None) -> None:
        self.identity, self.budget = identity, budget

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        progress = {} if self.budget is None else {"progress": self.budget.state()}
        kept = {"identity": self.identity}
        return {"args": kept, "attributes": kept | progress}

    @classmethod
    def go_on(cls, state: TrainerState, budget: Budget) -> None:
        """Continue a budget's rule where a checkpoint was written.

        Args:
            state: Of a Trainer; one that begins anew has nothing to continue.
            budget: Of the training.
        """
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
    """Return what must be the same for a checkpoint to be continued, and whence the priors came.

    Args:
        priors: Of the old tasks.
        strengths: λ of each.
        config: The other settings.
        probes: By the names of their tasks.
    """
    of_probes = (
        *("probe_weight", "probe_batch_size", "probe_every", "probe_held_out"),
        *("forgetting_budget", "budget_rule"),
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


def refuse_other(identity: dict[str, Any], plain: dict[str, Any], state_file: Path) -> None:
    """Make sure that a checkpoint was trained with this penalty.

    Args:
        identity: Of this run.
        plain: Of a run without priors, as which one counts that says nothing.
        state_file: The Trainer's state in the checkpoint.

    Raises:
        ConsolidationError: It was trained with another one; it says in what they differ.
    """
    if not state_file.is_file():
        return  # the Trainer says what is wrong with the checkpoint
    kept = json.loads(state_file.read_text(encoding="utf-8")).get("stateful_callbacks", {})
    name = ConsolidationState.__name__
    saved = kept.get(name) or kept.get(f"_{name}", {})  # before version 0.2
    was = plain | saved.get("attributes", {}).get("identity", {})
    one, two = _without_sources(was), _without_sources(identity)
    if other := [name for name in one | two if one.get(name) != two.get(name)]:
        tasks = [prior["task"] for prior in was["priors"]]
        raise ConsolidationError(
            f"{state_file.parent} was started with other {', '.join(other)} (priors of: "
            f"{', '.join(tasks) or 'none'}); resume with the same ones or start anew"
        )


def _without_sources(identity: dict[str, Any]) -> dict[str, Any]:
    """The same prior may be read from elsewhere when a checkpoint is continued."""
    priors = [{k: v for k, v in prior.items() if k != "source"} for prior in identity["priors"]]
    return {**identity, "priors": priors}
