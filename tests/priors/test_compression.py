"""Compressed priors: what they keep, what they say, and what is in their files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny.priors import assert_equal_priors, assert_equal_tensors, model, one_block, prior

from hf_kfc.curvature import Block, Kronecker, Layout, LowRankKronecker, relative_difference
from hf_kfc.errors import PriorError
from hf_kfc.priors import ConsolidationPrior
from hf_kfc.priors.privacy import without_rare_inputs
from hf_kfc.training.penalty import ConsolidationPenalty

from .test_merging import prior as kronecker_prior

BFLOAT16 = torch.bfloat16


def large(seed: int = 0) -> ConsolidationPrior:
    """As of :mod:`test_merging`, with a linear layer more that is worth a low rank."""
    small = kronecker_prior(seed, dtype=torch.float32)
    rows = torch.randn(60, 31)
    operator = Kronecker(rows.T @ rows, torch.eye(24) + torch.ones(24, 24))
    block = Block("wide", Layout.OUT_IN, {"w.weight": (24, 30), "w.bias": (24,)}, operator)
    anchor = small.anchor | {"w.weight": torch.randn(24, 30), "w.bias": torch.randn(24)}
    curvature = replace(small.curvature, blocks=(*small.curvature.blocks, block))
    return ConsolidationPrior(anchor, curvature, small.provenance)


@pytest.mark.parametrize(
    "asked", [{"rank": 2}, {"dtype": BFLOAT16}, {"rank": 2, "dtype": BFLOAT16}], ids=str
)
def test_a_compressed_prior_is_a_prior_as_any_other(
    asked: dict[str, object], tmp_path: Path
) -> None:
    whole = large()
    before = whole.fingerprint
    small = whole.compress(**asked)
    assert_equal_tensors(small.anchor, whole.anchor)
    small.save_pretrained(tmp_path / "prior")
    loaded = ConsolidationPrior.from_pretrained(tmp_path / "prior")
    assert_equal_priors(loaded, small)
    assert loaded.fingerprint == small.fingerprint != whole.fingerprint
    _, query, key, _, wide = loaded.curvature.blocks
    for name in query.operator.input_names:
        assert query.operator.state()[name] is key.operator.state()[name]
    assert isinstance(wide.operator, LowRankKronecker if "rank" in asked else Kronecker)

    stored = load_file(tmp_path / "prior" / "prior.safetensors")
    dtype = asked.get("dtype", torch.float32)
    for name, tensor in stored.items():
        kept = name.startswith("anchor/") or name.endswith("input_examples")
        assert tensor.dtype == (torch.float32 if kept else dtype)
    assert whole.fingerprint == before
    assert whole.provenance.approximation_errors == {}


def test_every_block_says_its_error() -> None:
    whole = large()
    small = whole.compress(rank=2, dtype=BFLOAT16)
    errors = small.provenance.approximation_errors
    for block, other in zip(whole.curvature.blocks, small.curvature.blocks, strict=True):
        expected = relative_difference(block.operator, other.operator, block.shape)
        assert errors[block.name] == pytest.approx(expected)
        assert errors[block.name] > 0
    again = small.compress(dtype=torch.float32)  # of numbers that have been rounded already
    assert again.provenance.approximation_errors == errors
    assert again.provenance.merged == {}


def test_errors_of_two_steps_add_up() -> None:
    whole = large()
    first = whole.compress(dtype=BFLOAT16)
    second = first.compress(rank=2)
    exact = {
        block.name: relative_difference(block.operator, other.operator, block.shape)
        for block, other in zip(whole.curvature.blocks, second.curvature.blocks, strict=True)
    }
    for name, error in second.provenance.approximation_errors.items():
        assert error >= first.provenance.approximation_errors[name]
        assert error >= exact[name] * (1 - 1e-6)


def test_bytes_are_saved(tmp_path: Path) -> None:
    sizes = {}
    for name, one in {
        "whole": large(),
        "half": large().compress(dtype=BFLOAT16),
        "small": large().compress(rank=2, dtype=BFLOAT16),
    }.items():
        one.save_pretrained(tmp_path / name)
        tensors = load_file(tmp_path / name / "prior.safetensors")
        sizes[name] = sum(t.nbytes for key, t in tensors.items() if "curvature/wide" in key)
    assert sizes["half"] == sizes["whole"] / 2
    assert sizes["small"] == 2 * (31 + 24) * 3  # two eigenpairs and a diagonal, of two bytes each


def test_the_penalty_of_half_precision_is_computed_in_float32() -> None:
    whole = prior().compress(dtype=BFLOAT16)
    moved = model(seed=1)
    wide = whole.compress(dtype=torch.float32)
    values = []
    for one in (whole, wide):
        value, _ = ConsolidationPenalty(moved, [one], [0.7], damping=0.1)()
        assert value.dtype == torch.float32
        values.append(value.detach())
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=0)
    parameters = dict(moved.named_parameters())
    delta = {name: parameters[name].detach() - a for name, a in whole.anchor.items()}
    assert torch.equal(whole.curvature.quadratic(delta), wide.curvature.quadratic(delta))


def test_rare_tokens_of_a_compressed_prior_are_left_out() -> None:
    small = large().compress(rank=2, dtype=BFLOAT16)
    public = without_rare_inputs(small, 11)
    words = public.curvature.blocks[0]
    assert words.inputs is not None
    assert words.inputs.tolist() == [3, 4, 5]
    assert public.provenance.approximation_errors == small.provenance.approximation_errors


def test_a_merged_prior_in_half_precision_is_merged_again(tmp_path: Path) -> None:
    merged = ConsolidationPrior.merge([large(0), large(1)], rank=2).compress(dtype=BFLOAT16)
    merged.save_pretrained(tmp_path / "prior")
    loaded = ConsolidationPrior.from_pretrained(tmp_path / "prior")
    again = ConsolidationPrior.merge([loaded, large(2)], rank=3)
    for block in again.curvature.blocks:
        assert {t.dtype for t in block.operator.state().values()} == {torch.float32}


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(PriorError, match="task 'old' would stay as it is; give a rank, a dtype or"):
        prior().compress()
    with pytest.raises(PriorError, match="cannot be compressed: the arguments: rank 0 keeps no"):
        prior().compress(rank=0)
    with pytest.raises(
        PriorError, match="'old' cannot be compressed: places: a kronecker_eigen cur"
    ):
        prior().compress(rank=1)
    single = Block("a", Layout.OUT_IN, {"w": (2, 2)}, Kronecker(torch.eye(2), torch.eye(2)))
    kept = one_block(single, {"w": torch.eye(2)}).compress(rank=1)
    assert kept.curvature.blocks[0].operator is single.operator  # nothing would be gained
    assert kept.provenance.approximation_errors == {"a": 0.0}
