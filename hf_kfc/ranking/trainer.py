"""A Trainer for candidate lists of uneven length."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import Trainer

from ..errors import ConsolidationError
from ..training import ConsolidationMixin
from .loss import masked_logits, ranking_loss
from .objective import ranking_forward

__all__ = ["RankingConsolidationTrainer", "RankingTrainer"]


class RankingTrainer(Trainer):
    """A Trainer whose batches may carry a ``candidate_mask``.

    Encoders with a multiple-choice head do not know the mask (BERT takes it and ignores it), so
    the padded candidates are taken out of the softmax here. A model gets the mask itself if it has
    an attribute ``takes_candidate_mask`` that is true. The loss is a mean over the
    micro-batch with or without a mask, and is scaled as one: the Trainer would multiply that of
    an encoder by the accumulated micro-batches and the processes (transformers#47688).

    Args:
        args: Positional arguments of the Trainer.
        kwargs: Keyword arguments of the Trainer.
    """

    loss_is_scaled_for_ga = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the mean cross entropy of the gold candidates that are really there.

        Args:
            model: The (wrapped) model.
            inputs: The batch.
            return_outputs: Whether to return the model's outputs too.
            num_items_in_batch: As in the Trainer.

        Raises:
            ConsolidationError: Label smoothing is on.
        """
        if "candidate_mask" not in inputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if self.label_smoother is not None:
            raise ConsolidationError(
                "padded candidates have no label smoothing; set label_smoothing_factor=0"
            )
        takes_mask = getattr(self.model, "takes_candidate_mask", False)
        ours = {"labels"} if takes_mask else {"candidate_mask", "labels"}
        features = {k: v for k, v in inputs.items() if k not in ours}
        outputs = model(**features)
        outputs["logits"] = masked_logits(outputs["logits"], inputs["candidate_mask"])
        loss = ranking_loss(outputs["logits"], inputs["labels"])
        return (loss, outputs) if return_outputs else loss


class RankingConsolidationTrainer(ConsolidationMixin, RankingTrainer):
    """A :class:`RankingTrainer` that learns a new task while holding on to earlier ones.

    Example:
        >>> trainer = RankingConsolidationTrainer(  # doctest: +SKIP
        ...     model,
        ...     ConsolidationArguments("runs/tier2", strengths=[0.5], damping=0.1),
        ...     priors=[ConsolidationPrior.from_pretrained("runs/tier1/prior")],
        ...     train_dataset=train,
        ...     data_collator=CandidateCollator(tokenizer),
        ... )
    """

    probe_forward = staticmethod(ranking_forward)
