"""What the commands tell of a prior's probes."""

from collections.abc import Callable
from pathlib import Path

import datasets
import pytest
from transformers import AutoTokenizer

from hf_kfc import ConsolidationPrior, Probes
from hf_kfc.ranking import (
    CandidateCollator,
    CnnForMultipleChoice,
    encode_candidates,
    ranking_forward,
)

from .conftest import Tier


@pytest.fixture
def carrying(tier: Tier, tmp_path: Path) -> Path:
    """The tier's prior with the members themselves as probes: the worst of sources."""
    model = CnnForMultipleChoice.from_pretrained(tier.model)
    tokenizer = AutoTokenizer.from_pretrained(tier.model)
    probes = Probes.from_dataset(
        model,
        encode_candidates(datasets.load_from_disk(str(tier.members)), tokenizer, 64),
        CandidateCollator(tokenizer),
        forward=ranking_forward,
        source="the old data\x1b[2J",
    )
    prior = ConsolidationPrior.from_pretrained(tier.prior).with_probes(probes)
    prior.save_pretrained(tmp_path / "carrying")
    return tmp_path / "carrying"


def test_inspect_tells_what_the_probes_are(tier, run, carrying):
    values = run("inspect", carrying, "--json").values["probes"]
    assert (values["inputs"], values["decisions"], values["loss"]) == (20, 20, "cross-entropy")
    assert values["counts"] == {"examples": 20}
    assert values["bytes"] > 0
    text = run("inspect", carrying).out
    assert "probes: name         the old data\\x1b[2J" in text
    assert "probes: inputs       20" in text
    assert "probes" not in run("inspect", tier.prior).out
    assert run("inspect", tier.prior, "--json").values["probes"] is None


def test_verify_holds_their_outputs_to_the_model(tier, run, carrying, changed: Callable[..., Path]):
    assert "20, whose outputs are of the same parameters" in run("verify", carrying, tier.model).out
    result = run("verify", carrying, changed("dense.bias"), "--json")
    assert result.status == 1
    assert "the probes are of a model with another dense.bias" in result.values["problems"]


def test_diff_tells_where_they_differ(tier, run, carrying, tmp_path):
    values = run("diff", carrying, tier.prior, "--json").values
    assert values["equal"] is False
    assert values["probes"]["inputs"] == [20, None]
    assert "probes: inputs" in run("diff", carrying, tier.prior).out
    whole = ConsolidationPrior.from_pretrained(carrying)
    assert whole.probes is not None
    fewer = whole.with_probes(whole.probes.select(range(10)))
    fewer.save_pretrained(tmp_path / "fewer")
    differing = run("diff", carrying, tmp_path / "fewer", "--json").values["probes"]
    assert differing["inputs"] == [20, 10]
    assert "loss" not in differing


def test_compress_keeps_them_and_merge_says_whose_it_leaves_out(tier, run, carrying, tmp_path):
    run("compress", carrying, "--output", tmp_path / "small", "--rank", 4)
    assert len(ConsolidationPrior.from_pretrained(tmp_path / "small").probes or []) == 20
    merged = run("merge", carrying, tier.prior, "--output", tmp_path / "merged", "--json").values
    assert merged["probes_left_out"] == {"symptoms": 20}
    assert ConsolidationPrior.from_pretrained(tmp_path / "merged").probes is None


def test_audit_tells_members_by_probes_made_of_them(tier, run, carrying):
    words = ("--model", tier.model, "--members", tier.members, "--non_members", tier.others)
    values = run("audit", carrying, *words, "--json").values
    assert values["probes"]["inputs"] == 20
    tests = {test["score"]: test["auc"] for test in values["membership"]}
    assert tests["pairs of tokens in probes"] == 1.0
    assert tests["tokens in probes"] == 1.0
    text = run("audit", carrying, *words).out
    assert "readable word for word: the 20 probes (the old data\\x1b[2J), 20 decisions" in text
    plain = run("audit", tier.prior, *words, "--json").values
    assert plain["probes"] is None
    assert not [test for test in plain["membership"] if "probes" in test["score"]]
