"""Logits and positions of candidate lists of uneven length."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from hf_kfc.ranking import ranking_forward, ranking_position_mask


def model(logits: Tensor) -> Any:
    def call(**inputs: Tensor) -> SimpleNamespace:
        assert "candidate_mask" not in inputs and "labels" not in inputs
        return SimpleNamespace(logits=logits)

    return call


def test_forward_removes_candidates_that_are_not_offered() -> None:
    logits = torch.randn(2, 3)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    batch = {"labels": torch.tensor([0, 2]), "candidate_mask": mask}
    outputs = ranking_forward(model(logits), batch)
    assert outputs.logits[0, 2] == torch.finfo(logits.dtype).min
    assert torch.equal(outputs.logits[mask.bool()], logits[mask.bool()])
    assert set(batch) == {"labels", "candidate_mask"}, "the batch was changed"


def test_without_a_mask_every_candidate_counts() -> None:
    logits = torch.randn(2, 3)
    assert torch.equal(ranking_forward(model(logits), {"labels": torch.tensor([0, 2])})[0], logits)


def test_position_mask() -> None:
    labels = torch.zeros(2, dtype=torch.long)
    tokens = torch.tensor([[[1, 1], [1, 0]], [[1, 0], [1, 0]]])
    offered = torch.tensor([[True, True], [True, False]])
    mask = ranking_position_mask
    assert mask({"labels": labels}).tolist() == [True, True]
    assert mask({"labels": labels, "candidate_mask": offered}).tolist() == offered.tolist()
    assert mask({"attention_mask": tokens}).tolist() == tokens.bool().tolist()
    both = mask({"attention_mask": tokens, "candidate_mask": offered})
    assert both.tolist() == [[[True, True], [True, False]], [[True, False], [False, False]]]
