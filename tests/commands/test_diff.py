from dataclasses import replace

import pytest
import torch
from tiny import priors

from hf_kfc import ConsolidationPrior
from hf_kfc.commands.diff import compare_blocks
from hf_kfc.curvature import (
    Block,
    Diagonal,
    Kronecker,
    Layout,
    Operator,
    relative_difference,
)
from hf_kfc.priors.privacy import without_rare_inputs

from .test_inspect import P, Q, moment, operators, sums


def seeded(seed: int) -> dict[str, Operator]:
    """Operators of every kind for one block; equal for equal seeds."""
    made = operators()
    torch.manual_seed(seed)
    made["kronecker"] = Kronecker(moment(P), moment(Q))
    made["embedding"] = Kronecker(torch.rand(P, dtype=torch.float64), moment(Q))
    made["flat"] = Kronecker(moment(P), torch.rand(Q, dtype=torch.float64))
    eigen = made["eigen"]
    bases = (torch.linalg.eigh(moment(n)).eigenvectors for n in (P, Q))
    made["eigen"] = type(eigen)(*bases, eigen.second_moments)
    made |= sums()
    made["low_rank"] = made["low_rank"].damped(seed)
    made["tokens"] = type(eigen)(torch.empty(0).double(), eigen.U_G, eigen.second_moments)
    return made


@pytest.mark.parametrize("first", seeded(1))
@pytest.mark.parametrize("second", seeded(2))
def test_inner_products_are_those_of_the_dense_matrices(first, second):
    one, other = seeded(1)[first], seeded(2)[second]
    dense, other_dense = one.matrix(Q, P), other.matrix(Q, P)
    expected = (dense * other_dense).sum()
    torch.testing.assert_close(one.inner(other, (Q, P)), expected)
    difference = (dense - other_dense).norm() / dense.norm()
    found = relative_difference(one, other, (Q, P))
    assert found == pytest.approx(float(difference), abs=1e-7)


def test_a_curvature_of_nothing_has_no_relative_difference():
    nothing = Diagonal(torch.zeros(Q, P))
    assert relative_difference(nothing, nothing, (Q, P)) is None


def test_a_prior_does_not_differ_from_itself(tier, run):
    result = run("diff", tier.prior, tier.prior)
    assert (result.status, result.out) == (0, f"{tier.prior} and {tier.prior} are equal\n")
    values = run("diff", tier.prior, tier.prior, "--json").values
    assert values["equal"] is True
    assert all(layer["curvature"] == layer["anchor"] == 0 for layer in values["layers"])


def test_differences_are_told_by_field_and_layer(tier, run, tmp_path):
    prior = ConsolidationPrior.from_pretrained(tier.prior)
    prior.anchor["dense.bias"] += 0.5
    blocks = [
        replace(block, operator=Kronecker(2 * block.operator.A, block.operator.G))
        if block.name == "classifier"
        else block
        for block in prior.curvature.blocks
    ]
    curvature = replace(prior.curvature, blocks=tuple(blocks))
    provenance = replace(prior.provenance, task="signs")
    ConsolidationPrior(prior.anchor, curvature, provenance).save_pretrained(tmp_path / "other")
    values = run("diff", tier.prior, tmp_path / "other", "--json").values
    assert values["equal"] is False
    assert values["provenance"] == {"task": ["symptoms", "signs"]}
    layers = {layer["name"]: layer for layer in values["layers"]}
    assert layers["classifier"]["curvature"] == pytest.approx(1)  # ‖F − 2F‖ / ‖F‖
    assert layers["classifier"]["anchor"] == 0
    assert layers["dense"]["curvature"] == 0
    assert layers["dense"]["largest"] == pytest.approx(0.5)
    matrix = torch.cat([prior.anchor["dense.weight"], prior.anchor["dense.bias"][:, None] - 0.5], 1)
    assert layers["dense"]["anchor"] == pytest.approx(float(0.5 * 8**0.5 / matrix.norm()))
    text = run("diff", tier.prior, tmp_path / "other").out
    assert any(line.split() == ["task", "symptoms", "signs"] for line in text.splitlines())


def test_embeddings_are_compared_on_the_tokens_that_both_cover(tier, run, tmp_path):
    whole = ConsolidationPrior.from_pretrained(tier.prior)
    whole.anchor["embeddings.weight"][:] += 1  # of all tokens
    public = without_rare_inputs(ConsolidationPrior.from_pretrained(tier.prior))
    kept = len(public.curvature.blocks[0].inputs)
    for first, second in ((whole, public), (public, whole)):
        embedding, *_ = compare_blocks(first, second)
        assert embedding.curvature == 0
        assert embedding.largest == pytest.approx(1)
        assert f"{kept:,} tokens of" in embedding.remark

    rest = torch.ones(whole.curvature.blocks[0].shape[1], dtype=torch.bool)
    rest[public.curvature.blocks[0].inputs] = False
    block = whole.curvature.blocks[0].of_inputs(rest.nonzero().flatten())
    other = priors.one_block(block, {"embeddings.weight": whole.anchor["embeddings.weight"][rest]})
    (embedding,) = compare_blocks(other, public)
    assert embedding.remark == "not comparable: no token in common"
    assert embedding.curvature is None


def test_layers_of_one_prior_only_and_of_other_shapes_are_told(tier, run, tmp_path):
    priors.prior().save_pretrained(tmp_path / "other")
    values = run("diff", tier.prior, tmp_path / "other", "--json").values
    assert values["only_in_a"] == ["classifier", "dense", "embeddings"]
    assert "query" in values["only_in_b"]
    (layer,) = values["layers"]
    assert layer["name"] == "convolution"
    assert layer["remark"] == "not comparable: other parameters or shapes"
    text = run("diff", tier.prior, tmp_path / "other").out
    assert f"only in {tier.prior}: classifier, dense, embeddings" in text


def test_priors_of_different_kinds_are_compared():
    source = priors.one_block(
        Block("layer", Layout.OUT_IN, {"layer.weight": (Q, P)}, Diagonal(torch.ones(Q, P))),
        {"layer.weight": torch.ones(Q, P)},
    )
    kronecker = Kronecker(torch.eye(P), 3 * torch.eye(Q))
    other = priors.one_block(replace(source.curvature.blocks[0], operator=kronecker), source.anchor)
    (layer,) = compare_blocks(source, other)
    assert layer.curvature == pytest.approx(2)


def test_each_prior_has_a_revision_of_its_own(tier, run, hub, tmp_path):
    prior = ConsolidationPrior.from_pretrained(tier.prior)
    prior.push_to_hub("org/kfc", tag="v1", min_examples=0)
    prior.anchor["dense.bias"] += 0.5
    ConsolidationPrior(prior.anchor, prior.curvature, prior.provenance).push_to_hub(
        "org/kfc", tag="v2", min_examples=0
    )
    values = run("diff", "org/kfc@v1", "org/kfc@v2", "--json").values
    assert values["a"] != values["b"]
    assert {layer["name"]: layer["largest"] for layer in values["layers"]}["dense"] == 0.5
    assert run("diff", "org/kfc@v2", "org/kfc", "--json").values["equal"]
