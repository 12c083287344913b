import pytest
import torch
from tiny.words import SECRET, Bag, data, moved

from hf_kfc import ConsolidationPrior
from hf_kfc.curvature import CurvatureArguments
from hf_kfc.errors import PriorError
from hf_kfc.priors.privacy import without_rare_inputs
from hf_kfc.training.penalty import ConsolidationPenalty


@pytest.fixture(params=["diagonal", "kronecker", "kronecker_eigen"])
def prior(request) -> ConsolidationPrior:
    torch.manual_seed(0)
    args = CurvatureArguments(curvature=request.param)
    collator = torch.utils.data.default_collate
    return ConsolidationPrior.estimate(Bag(), data(), collator, args, task="notes")


def test_rare_tokens_are_gone_row_and_anchor(prior, tmp_path):
    public = without_rare_inputs(prior)
    words, segments, _ = public.curvature.blocks
    assert words.inputs.tolist() == [0, 1, 2, 3, 4, 7]
    assert segments.inputs.tolist() == [0]
    assert public.provenance.dropped_inputs == {"words": 3, "segments": 1}
    assert public.provenance.min_examples == 10
    assert torch.equal(public.anchor["words.weight"], prior.anchor["words.weight"][words.inputs])
    assert all(block.input_examples is None for block in public.curvature.blocks)

    public.save_pretrained(tmp_path / "public")
    content = b"".join(path.read_bytes() for path in (tmp_path / "public").iterdir())
    row = prior.anchor["words.weight"][SECRET]
    assert row.numpy().tobytes() not in content
    assert prior.anchor["words.weight"][7].numpy().tobytes() in content
    loaded = ConsolidationPrior.from_pretrained(tmp_path / "public")
    assert loaded.fingerprint == public.fingerprint
    assert loaded.provenance == public.provenance
    assert loaded.curvature.blocks[0].inputs.tolist() == words.inputs.tolist()


def test_the_penalty_is_the_same_but_for_the_rows_left_out(prior):
    public, model = without_rare_inputs(prior), moved(1)
    public.check(model)
    with torch.no_grad():  # where only kept rows move
        for row in (5, SECRET, 8):
            model.words.weight[row] = prior.anchor["words.weight"][row]
        model.segments.weight[1] = prior.anchor["segments.weight"][1]
    values, gradients = [], []
    for one in (prior, public):
        model.zero_grad()
        value, _ = ConsolidationPenalty(model, [one], [0.7], damping=0.0)()
        value.backward()
        values.append(value.detach())
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    torch.testing.assert_close(values[1], values[0])
    torch.testing.assert_close(gradients[1], gradients[0])

    with torch.no_grad():
        model.words.weight[SECRET] += 1.0
    free, _ = ConsolidationPenalty(model, [public], [0.7], damping=0.1)()
    model.zero_grad()
    free.backward()
    assert torch.count_nonzero(model.words.weight.grad[SECRET]) == 0
    assert torch.count_nonzero(model.words.weight.grad[1]) > 0


def test_counts_are_kept_where_the_data_is_and_a_second_pass_changes_nothing(prior, tmp_path):
    prior.save_pretrained(tmp_path / "local")
    local = ConsolidationPrior.from_pretrained(tmp_path / "local")
    public = without_rare_inputs(local)
    assert public.fingerprint == without_rare_inputs(prior).fingerprint
    assert without_rare_inputs(public).fingerprint == public.fingerprint
    assert without_rare_inputs(public, 3).fingerprint == public.fingerprint
    with pytest.raises(PriorError, match="does not tell in how many examples the tokens of words"):
        without_rare_inputs(public, 11)


def test_an_embedding_of_rare_tokens_only_moves_freely(prior):
    public = without_rare_inputs(prior, 41)
    assert [block.name for block in public.curvature.blocks] == ["head"]
    assert public.curvature.ignored == ("segments.weight", "words.weight")
    public.check(moved(2))


def test_all_tokens_can_be_kept(prior):
    public = without_rare_inputs(prior, 0)
    assert public.provenance.dropped_inputs == {"words": 0, "segments": 0}
    assert all(block.input_examples is None for block in public.curvature.blocks)


def test_an_l2_prior_says_that_it_keeps_all_rows():
    l2 = ConsolidationPrior.l2(moved(0), task="notes")
    with pytest.raises(PriorError, match=r"is L2, which knows not .* give min_examples=0"):
        without_rare_inputs(l2)
    assert without_rare_inputs(l2, 0).provenance.min_examples == 0
