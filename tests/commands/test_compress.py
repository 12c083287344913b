import torch

from hf_kfc import ConsolidationPrior
from hf_kfc.curvature import LowRankKronecker


def test_a_prior_is_compressed_written_and_inspected(tier, run, tmp_path):
    prior = ConsolidationPrior.from_pretrained(tier.prior)
    expected = prior.compress(rank=3, dtype=torch.bfloat16)
    output = tmp_path / "small"
    result = run("compress", tier.prior, "--rank", 3, "--dtype", "bfloat16", "--output", output)
    assert (result.status, result.err) == (0, "")
    small = ConsolidationPrior.from_pretrained(output)
    assert small.fingerprint == expected.fingerprint
    layers = {line.split()[0]: line.split() for line in result.out.splitlines() if line}
    for block in small.curvature.blocks:
        error = small.provenance.approximation_errors[block.name]
        assert layers[block.name][1:] == [block.operator.kind, f"{error:.2%}"]
    assert any(isinstance(b.operator, LowRankKronecker) for b in small.curvature.blocks)

    whole, found = (run("inspect", p, "--json").values for p in (tier.prior, output))
    assert found["bytes"] < whole["bytes"]
    errors = small.provenance.approximation_errors
    assert {layer["name"]: layer["error"] for layer in found["layers"]} == errors
    assert {layer["error"] for layer in whole["layers"]} == {None}
    text = run("inspect", output).out
    assert f"largest {max(errors.values()):.2%} (" in text
    assert run("verify", output, tier.model).status == 0  # the anchor is the model's still


def test_what_cannot_be_compressed_is_one_line(tier, run, tmp_path):
    result = run("compress", tier.prior, "--output", tmp_path / "small")
    assert (result.status, result.out) == (1, "")
    assert "would stay as it is; give a rank, a dtype or both" in result.err
    assert run("compress", tier.prior, "--dtype", "int8", "--output", "x").status == 2
