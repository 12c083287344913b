"""What training moves and no penalty holds: running statistics stay, other buffers are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny.trainings import train
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel, Trainer
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_kfc.errors import ConsolidationError
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.training import ConsolidationConfig, ConsolidationTrainer


class Counting(nn.Module):
    """It remembers the mean of what it has seen, as a codebook does."""

    def __init__(self, first: int = 1) -> None:
        super().__init__()
        self.first = first
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("table", torch.zeros(4), persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.table.copy_(x.detach().mean(0))
            self.steps.add_(1)
            if self.steps >= self.first:
                self.mean.copy_(0.9 * self.mean + 0.1 * x.detach().mean(0))
        return x


class Normalised(PreTrainedModel):
    """A classifier of vectors with running statistics."""

    config_class = PreTrainedConfig

    def __init__(self, norm: nn.Module) -> None:
        super().__init__(PreTrainedConfig())
        self.body = nn.Sequential(nn.Linear(4, 4), norm)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, labels: Tensor) -> SequenceClassifierOutput:
        logits = self.head(self.body(x))
        return SequenceClassifierOutput(nn.functional.cross_entropy(logits, labels), logits)


def rows() -> list[dict[str, Tensor]]:
    torch.manual_seed(1)
    return [{"x": 5 + 3 * torch.randn(4), "labels": torch.tensor(i % 3)} for i in range(8)]


def trained(
    norm: nn.Module,
    folder: Path,
    ignore: list[str] | None = None,
    kind: type[Trainer] = ConsolidationTrainer,
) -> Any:
    """Trained at learning rate 0, so that only buffers can move."""
    torch.manual_seed(0)
    model = Normalised(norm)
    return train(
        kind,
        model,
        rows(),
        folder,
        [ConsolidationPrior.l2(model, task="old")],
        ConsolidationConfig(strengths=[1.0], ignore=ignore),
        more={"data_collator": torch.utils.data.default_collate},
        learning_rate=0.0,
        num_train_epochs=4,
        per_device_train_batch_size=4,
    )


NORMS = {
    "BatchNorm1d": lambda: nn.BatchNorm1d(4),
    "without_gain": lambda: nn.BatchNorm1d(4, affine=False),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(4),
}


@pytest.mark.parametrize("make", NORMS.values(), ids=NORMS)
def test_running_statistics_stay(
    make: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trained(make(), tmp_path)
    norm = trainer.model.body[1]
    assert torch.equal(norm.running_mean, torch.zeros(4))
    assert torch.equal(norm.running_var, torch.ones(4))
    assert norm.num_batches_tracked == 0
    (message,) = caplog.messages
    assert message.startswith(f"1 {type(norm).__name__} stay in evaluation mode")
    assert trainer.model.head.training  # the others do not


@pytest.mark.parametrize("ignore", [["BatchNorm1d"], ["body.1"], ["*.running_*"]])
def test_they_move_where_that_is_wanted(ignore: list[str], tmp_path: Path) -> None:
    assert trained(nn.BatchNorm1d(4), tmp_path, ignore).model.body[1].running_mean.norm() > 1


def test_without_priors_they_move(tmp_path: Path) -> None:
    trainer = trained(nn.BatchNorm1d(4), tmp_path, kind=Trainer)
    assert trainer.model.body[1].running_mean.norm() > 1


@pytest.mark.parametrize("first", [1, 3])
def test_other_buffers_that_move_are_refused(first: int, tmp_path: Path) -> None:
    """Tables that are computed anew and counts are none."""
    with pytest.raises(ConsolidationError, match=r"1 buffers .*\(body\.1\.mean.*`ignore`"):
        trained(Counting(first), tmp_path)
    trainer = trained(Counting(), tmp_path, ["*.mean"])
    assert trainer.model.body[1].mean.norm() > 0
