"""Rivals to the penalty as a Trainer: learning rates by layer, and rehearsal of kept examples."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from torch.optim import Optimizer
from torch.utils.data import ConcatDataset, DataLoader

from hf_kfc.errors import ConsolidationError
from hf_kfc.ranking.trainer import RankingConsolidationTrainer
from hf_kfc.training import ConsolidationArguments
from hf_kfc.training.processes import problem_of_sharding

from .layerwise import split_by_depth
from .rehearsal import RehearsalSampler

__all__ = ["RivalArguments", "RivalTrainer"]


@dataclass
class RivalArguments(ConsolidationArguments):
    """``ConsolidationArguments`` plus what rivals to the penalty need.

    Args:
        layer_decay: γ of the learning rates η_ℓ = η·γ^ℓ, ℓ counted from the head downwards; see
            :func:`~laboratory.layerwise.layer_depths`. 1 leaves all at η.
        rehearsal: How old examples are mixed in where the trainer has an ``old_dataset``; see
            :class:`~laboratory.rehearsal.RehearsalSampler`.
    """

    layer_decay: float = 1.0
    rehearsal: str = "fixed"


class RivalTrainer(RankingConsolidationTrainer):
    """Learning rates that fall from the head downwards, and rehearsal of kept old examples.

    ``train_dataset`` is the new task's alone, and its length what gives the Bayesian strength. The
    engine repeats a run that was stopped, so that no checkpoint is made or gone on from.

    Args:
        args: Positional arguments of the Trainer.
        old_dataset: Kept examples of earlier tasks, as a list.
        kwargs: Keyword arguments of the Trainer; ``args`` must be :class:`RivalArguments`.

    Raises:
        ConsolidationError: Layers cannot have learning rates of their own here (DeepSpeed, FSDP1).
    """

    args: RivalArguments

    def __init__(self, *args: Any, old_dataset: list[Any] | None = None, **kwargs: Any) -> None:
        self.old_dataset = old_dataset
        super().__init__(*args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        """Make the Trainer's optimizer, with the learning rates of the layers.

        Args:
            args: As in the Trainer.
            kwargs: As in the Trainer.
        """
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if is_new and self.args.layer_decay != 1:
            model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
            split_by_depth(optimizer, cast(nn.Module, model), self.args.layer_decay)
        return optimizer

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of the new task, with old examples where there is an old_dataset."""
        if self.old_dataset is None:
            return super().get_train_dataloader()
        sampler = RehearsalSampler(
            len(cast(Sized, self.train_dataset)),
            len(self.old_dataset),
            self.args.rehearsal,
            step_size=self.get_total_train_batch_size(self.args),
            seed=self.args.seed,
        )
        return self._get_dataloader(
            dataset=ConcatDataset([cast(Any, self.train_dataset), cast(Any, self.old_dataset)]),
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=lambda _: sampler,
            is_training=True,
        )

    def _refuse_unsupported(self) -> None:
        super()._refuse_unsupported()
        problem = problem_of_sharding(self.accelerator)
        if problem is not None and self.args.layer_decay != 1:
            raise ConsolidationError(f"the learning rates of the layers would be wrong: {problem}")
