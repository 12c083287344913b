"""Probes of the tiny rankers."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_kfc.probes import Probes
from hf_kfc.ranking import CandidateCollator
from hf_kfc.ranking.objective import ranking_forward

from .data import make_examples
from .models import RANKERS

PROBED = make_examples(10, seed=9)
pad_candidates = CandidateCollator(SimpleNamespace(pad_token_id=0))  # type: ignore[arg-type]


def moved(model: str, distance: float = 0.3, seed: int = 4) -> PreTrainedModel:
    """A ranker some way from the one that is trained, so that the divergence has a gradient."""
    anchor, generator = RANKERS[model](), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in anchor.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=distance)
    return anchor


def probes_of(anchor: nn.Module, examples: Sequence[dict[str, Any]] = PROBED) -> Probes:
    """What a ranker says of some examples."""
    return Probes.from_dataset(anchor, examples, pad_candidates, forward=ranking_forward)
