"""Priors that are there already are published from the command line."""

from pathlib import Path

import pytest
import torch
from hub_server import HubServer
from tiny.data import pad
from tiny.models import VOCABULARY, classifier

from hf_kfc import ConsolidationPrior, CurvatureArguments
from hf_kfc.hub import push_model
from hf_kfc.priors.privacy import MIN_EXAMPLES


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model, and a prior that has seen every token it holds in more than ten examples."""
    generator, network = torch.Generator().manual_seed(0), classifier()
    rows = [
        {
            "input_ids": torch.randint(1, VOCABULARY, (14,), generator=generator),
            "labels": torch.tensor(number % 3),
        }
        for number in range(60)
    ]
    network.save_pretrained(tmp_path / "model")
    args = CurvatureArguments(min_token_examples=10, unknown_token_id=1)
    ConsolidationPrior.estimate(network, rows, pad, args, task="old").save_pretrained(
        tmp_path / "prior"
    )
    return tmp_path


def test_a_small_prior_is_published_and_points_at_its_model(run, hub: HubServer, folder: Path):
    there = push_model(folder / "model", "org/model", card="# A model")
    small = ("--rank", 1, "--dtype", "bfloat16", "--output", folder / "small")
    assert run("compress", folder / "prior", *small).status == 0
    words = ("push", folder / "small", "org/kfc", "--anchor", there, "--json")
    first, second = run(*words), run(*words)
    assert (first.status, second.status) == (0, 0), first.err
    assert first.values["published"] == second.values["published"]  # nothing is done twice
    found = ConsolidationPrior.from_pretrained("org/kfc")
    assert str(found.source) == first.values["published"]
    assert "low_rank_kronecker" in {block.operator.kind for block in found.curvature.blocks}
    pushed = hub.repositories["model", "org/kfc"]
    assert pushed.private
    assert found.provenance.min_examples == MIN_EXAMPLES
    assert b"anchor/" not in pushed.resolve("main").files["prior.safetensors"].content


def test_what_cannot_be_published_is_told(run, hub: HubServer, folder: Path):
    result = run("push", folder / "prior", "kfc")
    assert (result.status, "give ORG/NAME" in result.err) == (2, True)
    assert run("push", folder / "prior", "org/kfc", "--min_examples", -1).status == 2
    result = run("push", folder / "prior", "org/kfc", "--anchor", "org/model@main")
    assert result.status == 1
    assert "org/model is not pinned by 'main'" in result.err
    assert run("push", folder / "nothing", "org/kfc").status == 1
    assert not hub.repositories
