"""Averages of parameters and of scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from tiny.data import Collator
from tiny.models import ranking_bert
from tiny.trainings import HELD_OUT, arguments
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from hf_kfc.ranking.trainer import RankingTrainer
from laboratory.averaging import ScoreAverage, average_parameters


def moved(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """The model, a random step away."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def three() -> list[PreTrainedModel]:
    return [moved(ranking_bert(), 1), moved(ranking_bert(), 2), moved(ranking_bert(), 3)]


# Parameters


def test_parameters() -> None:
    first, second, third = models = three()
    mean = ranking_bert()
    mean.load_state_dict(average_parameters(first, second, 1 / 2))
    found = average_parameters(mean, third, 1 / 3)
    states = [model.state_dict() for model in models]
    assert found.keys() == states[0].keys()
    for name, value in found.items():
        expected = sum(state[name].double() for state in states) / 3
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)
    assert torch.equal(
        average_parameters(first, second, 1)["classifier.weight"], second.classifier.weight
    )


def test_the_sum_is_float64() -> None:
    def half(value: float) -> nn.Module:
        layer = nn.Linear(1, 1).half()
        nn.init.constant_(layer.weight, value)
        return layer

    found = average_parameters(half(0.001), half(1.0), 1 / 10)["weight"]
    expected = torch.tensor((1 + 9 * half(0.001).weight.double().item()) / 10).half()
    assert found.item() == expected.item()
    assert found.dtype == torch.float16


def test_buffers() -> None:
    norms = [nn.BatchNorm1d(2), nn.BatchNorm1d(2)]
    for index, norm in enumerate(norms):
        norm.running_mean.fill_(index)
        norm.num_batches_tracked.fill_(10 + index)
    found = average_parameters(*norms, 1 / 2)
    assert found["running_mean"].tolist() == [0.5, 0.5]
    assert found["num_batches_tracked"].item() == 11
    found["num_batches_tracked"].add_(1)
    assert norms[1].num_batches_tracked.item() == 11


# Scores


def features(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in batch.items() if k not in ("candidate_mask", "labels")}


@torch.no_grad()
def expected_probabilities(models: list[PreTrainedModel], example: dict[str, Any]) -> Tensor:
    """Of one example alone, which has no padding."""
    batch = features(Collator()([example]))
    each = [model.double()(**batch).logits[0].softmax(-1) for model in models]
    return torch.stack(each).mean(0)


@torch.no_grad()
def test_scores_with_padded_candidates() -> None:
    models = three()
    batch = Collator()(HELD_OUT)
    mask = batch["candidate_mask"]
    assert not mask.all()
    output = ScoreAverage(models).eval()(**features(batch), candidate_mask=mask)
    assert output.loss is None
    assert (output.logits[~mask] == torch.finfo(torch.float32).min).all()
    for row, example in enumerate(HELD_OUT):
        expected = expected_probabilities(models, example)
        found = output.logits[row][mask[row]].exp()
        assert found.sum().item() == pytest.approx(1)
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-4)


def softmax(logits: Tensor, mask: Tensor) -> Tensor:
    return logits.masked_fill(~mask, -torch.inf).softmax(-1)


@torch.no_grad()
def test_without_the_mask_padding_would_weigh_the_models() -> None:
    models, batch = three(), Collator()(HELD_OUT)
    mask = batch["candidate_mask"]
    average = ScoreAverage(models)
    right = average(**features(batch), candidate_mask=mask).logits
    without = average(**features(batch)).logits
    assert (softmax(without, mask) - softmax(right, mask)).abs().max() > 0.01


@pytest.mark.parametrize("masked", [True, False])
def test_in_the_ranking_trainer(masked: bool, tmp_path: Path) -> None:
    models, data = three(), HELD_OUT
    trainer = RankingTrainer(
        ScoreAverage(models),
        arguments(tmp_path, per_device_eval_batch_size=7),
        eval_dataset=data if masked else data[:1],
        data_collator=Collator(masked),
    )
    result = trainer.predict(trainer.eval_dataset)
    expected = [expected_probabilities(models, e) for e in trainer.eval_dataset]
    losses = [-p[e["labels"]].log() for p, e in zip(expected, trainer.eval_dataset, strict=True)]
    assert result.metrics["test_loss"] == pytest.approx(torch.stack(losses).mean().item(), 1e-4)
    for row, probabilities in zip(result.predictions, expected, strict=True):
        found = torch.tensor(row[: len(probabilities)]).exp()
        torch.testing.assert_close(found.double(), probabilities, atol=1e-5, rtol=1e-4)


def test_the_trainer_keeps_the_columns(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list([{**e, "index": i} for i, e in enumerate(HELD_OUT)])
    args = arguments(tmp_path, remove_unused_columns=True)
    trainer = RankingTrainer(ScoreAverage(three()), args)
    kept = trainer._remove_unused_columns(data).column_names
    assert sorted(kept) == ["input_ids", "labels", "token_type_ids"]


@torch.no_grad()
def test_the_output_is_the_last_models() -> None:
    models, batch = three(), features(Collator()(HELD_OUT))
    output = ScoreAverage(models)(**batch, output_hidden_states=True)
    last = models[-1](**batch, output_hidden_states=True)
    assert type(output) is type(last)
    for found, expected in zip(output.hidden_states, last.hidden_states, strict=True):
        assert torch.equal(found, expected)


@torch.no_grad()
def test_half_precision_scores_are_averaged_in_float32() -> None:
    class Constant(nn.Module):
        def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
            return {"logits": torch.tensor([[30.0, -30.0, 5.0]]).to(torch.float16)}

    output = ScoreAverage([Constant(), Constant()])(
        torch.zeros(1, 3), candidate_mask=torch.tensor([[True, True, False]])
    )
    expected = functional.log_softmax(torch.tensor([30.0, -30.0]), -1)
    torch.testing.assert_close(output["logits"][0, :2], expected)
    assert output["logits"].dtype == torch.float32
