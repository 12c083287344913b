"""Priors that carry probes."""

import pytest
import torch
from tiny.data import lists_of_tokens, pad_lists
from tiny.models import classifier

from hf_kfc import ConsolidationPrior, Probes
from hf_kfc.errors import PriorError


def test_a_prior_carries_probes_of_its_anchor_alone():
    model = classifier()
    prior = ConsolidationPrior.l2(model, task="old")
    probes = Probes.from_dataset(model, lists_of_tokens(), pad_lists())
    assert prior.with_probes(probes).probes is probes
    assert prior.with_probes(probes).with_probes(None).probes is None
    with torch.no_grad():
        model.classifier.bias[0] += 1
    other = ConsolidationPrior.l2(model, task="old")
    with pytest.raises(PriorError, match=r"probes are of another anchor: classifier\.bias differ"):
        other.with_probes(probes)
