"""Rivals to the penalty as a Trainer: learning rates by layer, and rehearsal of kept examples."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from hf_kfc.errors import ConsolidationError
from hf_kfc.ranking.trainer import RankingConsolidationTrainer
from hf_kfc.training import ConsolidationArguments
from hf_kfc.training.resuming import PLAIN
from hf_kfc.training.sharing import problem_of_sharding

from .layerwise import split_by_depth
from .rehearsal import SCHEDULES, RehearsalSampler, join_datasets

__all__ = ["RivalArguments", "RivalTrainer"]


@dataclass
class RivalArguments(ConsolidationArguments):
    """``ConsolidationArguments`` plus what rivals to the penalty need.

    Args:
        layer_decay: γ of the learning rates η_ℓ = η·γ^ℓ, ℓ counted from the head downwards; see
            :func:`~laboratory.layerwise.layer_depths`. 1 leaves all at η.
        rehearsal: How old examples are mixed in where the trainer has an ``old_dataset``; see
            :class:`~laboratory.rehearsal.RehearsalSampler`.
        replay_every: m of ``rehearsal="replay"``.
        replay_batches: n of ``rehearsal="replay"``.
        old_share: p of ``rehearsal="fixed"``.
    """

    layer_decay: float = field(
        default=1.0,
        metadata={
            "help": "Factor between the learning rates of a layer and of the one above it; the "
            "head has the full rate."
        },
    )
    rehearsal: str = field(
        default="fixed",
        metadata={
            "help": "How old examples are mixed in, only where the trainer has an old_dataset: "
            "'replay' (steps of old examples between those of the new task), 'fixed' (epochs as "
            "long as the new task, a share of them old) or 'growing' (all examples of both).",
            "choices": list(SCHEDULES),
        },
    )
    replay_every: int = field(
        default=5,
        metadata={
            "help": "Optimizer steps of the new task before old examples are replayed, only with "
            "an old_dataset and rehearsal 'replay'."
        },
    )
    replay_batches: int = field(
        default=1,
        metadata={
            "help": "Optimizer steps of old examples in each replay, only with an old_dataset and "
            "rehearsal 'replay'."
        },
    )
    old_share: float = field(
        default=0.5,
        metadata={
            "help": "Share of old examples in an epoch, only with an old_dataset and rehearsal "
            "'fixed'."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, is_right, wanted in (
            ("layer_decay", 0 < self.layer_decay <= 1, "above 0 and at most 1"),
            ("rehearsal", self.rehearsal in SCHEDULES, "one of " + ", ".join(SCHEDULES)),
            ("replay_every", self.replay_every >= 1, "a number ≥ 1"),
            ("replay_batches", self.replay_batches >= 1, "a number ≥ 1"),
            ("old_share", 0 < self.old_share < 1, "above 0 and below 1"),
        ):
            if not is_right:
                raise ConsolidationError(
                    f"{name} {getattr(self, name)} is not {wanted}; correct `{name}`"
                )


class RivalTrainer(RankingConsolidationTrainer):
    """Learning rates that fall from the head downwards, and rehearsal of kept old examples.

    ``train_dataset`` is the new task's alone, and its length what gives the Bayesian strength.

    Args:
        args: Positional arguments of the Trainer.
        old_dataset: Kept examples of earlier tasks, a list or a map-style data set.
        kwargs: Keyword arguments of the Trainer; ``args`` must be :class:`RivalArguments`.

    Raises:
        ConsolidationError: Data sets that cannot be joined, or an optimizer of one's own beside
            learning rates by layer.
    """

    args: RivalArguments
    plain_identity = PLAIN | {"layer_decay": 1.0, "rehearsal": None}

    def __init__(self, *args: Any, old_dataset: Any = None, **kwargs: Any) -> None:
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
        # Made anew like the loader: `auto_find_batch_size` may have changed the size of a step.
        sampler = self._make_sampler()
        loader: Any = self._get_dataloader(
            dataset=self._join_datasets(),
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=lambda _: sampler,
            is_training=True,
        )
        # As accelerate does with a sampler of its own. Without, a run continued in the middle of an
        # epoch would have the order of the first epoch: in several processes the loader that skips
        # the batches already trained on would not find the sampler to tell it the epoch.
        loader.set_sampler(sampler)
        return cast(DataLoader[Any], loader)

    def num_examples(self, dataloader: DataLoader[Any]) -> int:
        """Return the examples of an epoch, of which rehearsal has more or fewer than its data.

        Args:
            dataloader: As in the Trainer.
        """
        sampler = getattr(getattr(dataloader, "batch_sampler", None), "sampler", None)
        if isinstance(sampler, RehearsalSampler):
            return len(sampler)
        return super().num_examples(dataloader)

    def _join_datasets(self) -> Any:
        return join_datasets(self.train_dataset, self.old_dataset, self.args)

    def _make_sampler(self) -> RehearsalSampler:
        args = self.args
        return RehearsalSampler(
            len(cast(Sized, self.train_dataset)),
            len(self.old_dataset),
            args.rehearsal,
            step_size=self.get_total_train_batch_size(args),
            replay_every=args.replay_every,
            replay_batches=args.replay_batches,
            old_share=args.old_share,
            seed=args.seed if args.data_seed is None else args.data_seed,
        )

    def _refuse_unsupported(self) -> None:
        super()._refuse_unsupported()
        if self.old_dataset is not None:
            self._join_datasets()  # what is wrong with them is to be said now
            self._make_sampler()
        if self.args.layer_decay != 1:
            self._refuse_other_optimizers()

    def _refuse_other_optimizers(self) -> None:
        problem = problem_of_sharding(self.accelerator)
        if self.optimizer is not None:
            problem = "the optimizer was made elsewhere; give optimizer_cls_and_kwargs instead"
        if problem is not None:
            raise ConsolidationError(f"the learning rates of the layers would be wrong: {problem}")

    def _refuse_other_priors(self, state_file: Path) -> None:
        try:
            super()._refuse_other_priors(state_file)
        except ConsolidationError as error:
            raise ConsolidationError(
                f"{error} (likewise with other layer_decay or rehearsal: start anew)"
            ) from error

    def _identity(self) -> dict[str, Any]:
        return {
            **super()._identity(),
            "layer_decay": self.args.layer_decay,
            "rehearsal": None if self.old_dataset is None else self._rehearsal_identity(),
        }

    def _rehearsal_identity(self) -> dict[str, Any]:
        names = {"replay": ("replay_every", "replay_batches"), "fixed": ("old_share",)}
        relevant = ("rehearsal", *names.get(self.args.rehearsal, ()))
        return {
            "num_old": len(self.old_dataset),
            **{name: getattr(self.args, name) for name in relevant},
        }
