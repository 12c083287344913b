"""The Bayesian strength of a prior, and what the new task's loss is a mean over."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

from torch import Tensor
from transformers import Trainer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ..dataset import random_numbers_kept
from ..errors import ConsolidationError
from ..priors import ConsolidationPrior

__all__ = ["NewLabels", "bayesian_strength", "count_labels", "strengths_for"]

logger = logging.getLogger(__name__)

_MOST_COUNTED = 1024
"""Examples whose labels are counted; of a larger data set these stand for all."""


def bayesian_strength(prior: ConsolidationPrior, num_new: float) -> float:
    """Return λ = N_old / (2·N_new), at which penalty and loss are one posterior.

    The log-posterior is N_new·(mean new loss) + ½·N_old·ΔᵀFΔ; dividing by N_new gives λ
    (Kirkpatrick et al. 2017, Eq. 3, in this library's convention).

    Args:
        prior: Of the old task.
        num_new: What the new loss is a mean over: training examples of the new task, or their
            labelled tokens (see :func:`count_labels`).

    Raises:
        ConsolidationError: The prior was made without data, or there are no new examples.
    """
    if not prior.provenance.num_examples or not num_new:
        raise ConsolidationError(
            f"prior of task '{prior.task}' has {prior.provenance.num_examples} examples and the "
            f"new task {f'{num_new:g}' if num_new else 'none, or no known number of them'}, so "
            "there is no Bayesian strength; set `strengths`"
        )
    return prior.provenance.num_examples / (2 * num_new)


def strengths_for(given: Sequence[float], priors: Sequence[ConsolidationPrior]) -> list[float]:
    """Return one strength for each prior, of one for all or one for each."""
    if len(given) not in (1, len(priors)):
        raise ConsolidationError(
            f"{len(given)} strengths were given for {len(priors)} priors; give one for all or one "
            "for each"
        )
    return list(given) * (len(priors) if len(given) == 1 else 1)


def count_labels(
    dataset: Any,
    data_collator: Callable[[list[Any]], Mapping[str, Any]],
    label_names: Sequence[str],
    *,
    shifted: bool = False,
    batch_size: int = 8,
    seed: int = 0,
) -> float:
    """Return how many labels a data set has: a mean loss is one over these.

    A causal language model's loss is a mean over labelled tokens, a classifier's over examples, of
    numbers and of binary labels over each of an example's, and of answers over starts and ends.
    Of a data set of more than 1,024 examples, as many at equal distances are counted. Random
    numbers that the collator draws do not change those of the training.

    Args:
        dataset: With a length and examples by number.
        data_collator: Makes a batch of a list of examples.
        label_names: Of the batch's labels; −100 is none. Examples without any count once.
        shifted: Whether the loss compares a position with the next label, so that first ones
            count for nothing.
        batch_size: Examples that are collated together.
        seed: Of what the collator draws at random.
    """
    total = len(dataset)
    size = min(total, _MOST_COUNTED)
    chosen = [index * total // size for index in range(size)]
    count = 0
    with random_numbers_kept(seed):
        for start in range(0, size, batch_size):
            rows = [dataset[index] for index in chosen[start : start + batch_size]]
            found = _labels(data_collator(rows), label_names, shifted)
            if all(labels.ndim < 2 for labels in found):
                return total * max(1, len(found))  # one label per example and name
            count += sum(
                labels.numel() if labels.is_floating_point() else int(labels.ne(-100).sum())
                for labels in found
            )
    return count * total / max(1, size)


class NewLabels:
    """How many labels the new task's loss is a mean over; counted once for each data set."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._counted: tuple[Any, float] | None = None

    @property
    def examples(self) -> int:
        """Of the new task, 0 if that is not known; a dict holds several data sets."""
        data = self._trainer.train_dataset
        return len(data) if isinstance(data, Sized) and not isinstance(data, Mapping) else 0

    def __call__(self) -> float:
        """Return their number, 0 if it is not known."""
        trainer, data = self._trainer, self._trainer.train_dataset
        if not self.examples:
            return 0
        if self._counted is None or self._counted[0] is not data:
            count = count_labels(
                data,
                trainer._get_collator_with_removed_columns(trainer.data_collator),
                trainer.label_names,
                shifted=self._are_shifted(),
                batch_size=trainer.args.per_device_train_batch_size,
                seed=trainer.args.seed,
            )
            self._counted = data, count
            logger.info(
                "The new loss is a mean over %g labels of %d examples: strengths are by default "
                "N_old / (2 * %g).",
                count,
                self.examples,
                count,
            )
        return self._counted[1]

    def _are_shifted(self) -> bool:
        """Whether the loss compares a position with the next label, by what the Trainer knows."""
        model: Any = self._trainer.accelerator.unwrap_model(
            self._trainer.model, keep_torch_compile=False
        )
        model = model.get_base_model() if hasattr(model, "get_base_model") else model
        by_class = type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()  # GPT-2
        return by_class or bool(getattr(self._trainer, "_loss_shifts_labels", False))


def _labels(batch: Mapping[str, Any], names: Sequence[str], shifted: bool) -> list[Tensor]:
    """As the Trainer counts them for its ``num_items_in_batch``."""
    if isinstance(batch.get("shift_labels"), Tensor):
        return [batch["shift_labels"]]
    found = [batch[name] for name in names if isinstance(batch.get(name), Tensor)]
    return [labels[..., 1:] if shifted and labels.ndim > 1 else labels for labels in found]
