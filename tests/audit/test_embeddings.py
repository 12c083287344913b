import pytest
import torch
from tiny.data import pad, texts
from tiny.models import VOCABULARY, llama
from tiny.words import SECRET, Bag, data, moved
from torch import nn

from hf_kfc import ConsolidationPrior
from hf_kfc.audit import audit_tokens
from hf_kfc.curvature import (
    CurvatureArguments,
    Diagonal,
    Identity,
    Kronecker,
    KroneckerEigen,
    KroneckerSum,
    LowRankKronecker,
)
from hf_kfc.errors import PriorError
from hf_kfc.priors.privacy import without_rare_inputs

NEVER = 5
KINDS = ["diagonal", "kronecker", "kronecker_eigen"]


def estimate(kind: str) -> ConsolidationPrior:
    torch.manual_seed(0)
    collator = torch.utils.data.default_collate
    return ConsolidationPrior.estimate(
        Bag(), data(), collator, CurvatureArguments(curvature=kind), task="notes"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_token_of_the_data_can_be_read_off_a_whole_prior(kind):
    words, segments = audit_tokens(estimate(kind))
    assert (words.name, words.vocabulary, words.covered) == ("words", 9, 9)
    assert set(words.seen) == set(range(9)) - {NEVER}
    assert words.readable == words.seen
    assert words.moved is None
    assert words.counts
    assert segments.seen == (0,)


def test_the_rarest_tokens_come_first():
    seen = audit_tokens(estimate("kronecker"))[0].seen
    assert seen[:3] == (SECRET, 8, 7)  # of two, nine and ten examples


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_published_prior_what_is_covered_can_be_read_off(kind):
    words, segments = audit_tokens(without_rare_inputs(estimate(kind)))
    assert (words.vocabulary, words.covered) == (9, 6)
    assert sorted(words.seen) == [0, 1, 2, 3, 4, 7]
    assert not words.counts
    assert (segments.covered, segments.seen) == (1, (0,))


def test_anchors_tell_which_rows_training_moved():
    torch.manual_seed(0)
    base = Bag()  # as the prior's model is
    prior = estimate("kronecker")
    assert audit_tokens(prior, base)[0].moved == ()
    with torch.no_grad():
        base.words.weight[[3, NEVER]] += 1e-6
    words, segments = audit_tokens(prior, base)
    assert words.moved == (3, NEVER)
    assert words.readable == (*words.seen, NEVER)
    assert segments.moved == ()
    assert audit_tokens(without_rare_inputs(prior), base)[0].moved == (3,)


def test_a_base_model_without_the_head_is_found_by_the_end_of_its_names():
    prior = estimate("kronecker")
    whole = nn.ModuleDict({"encoder": Bag()})
    renamed = ConsolidationPrior.l2(whole, task="notes")
    words, _ = audit_tokens(renamed, Bag())
    assert words.name == "encoder.words.weight"
    assert len(words.moved or ()) == 9
    with pytest.raises(PriorError, match=r"has no such embedding for words\.weight"):
        audit_tokens(prior, nn.Linear(2, 2))


def test_a_base_model_of_another_vocabulary_is_refused():
    other = Bag()
    other.words = nn.Embedding(10, 4)
    with pytest.raises(PriorError, match=r"has shape \[10, 4\] for words.weight of shape \[9, 4\]"):
        audit_tokens(estimate("kronecker"), other)


def test_an_l2_prior_tells_tokens_by_its_anchor_alone():
    model = moved(1)
    prior = ConsolidationPrior.l2(model, task="notes")
    assert audit_tokens(prior) == ()
    with torch.no_grad():
        model.words.weight[SECRET] += 1
    words, segments = audit_tokens(prior, model)
    assert (words.seen, words.moved, segments.moved) == ((), (SECRET,), ())


def test_the_input_moment_is_the_trace_over_outputs():
    torch.manual_seed(0)
    p, q = 3, 2
    bases = [torch.linalg.qr(torch.randn(n, n)).Q for n in (p, q)]
    rows = torch.randn(5, p)
    for operator, scale in (
        (Kronecker(rows.T @ rows, torch.eye(q)), q),
        (Diagonal(torch.rand(q, p)), 1),
        (KroneckerEigen(*bases, torch.rand(q, p)), 1),
        (KroneckerEigen(torch.empty(0), bases[1], torch.rand(q, p)), 1),
        (KroneckerSum(torch.rand(2, p), torch.eye(q) * torch.rand(2, 1, 1)), 1),
        (KroneckerSum(torch.stack([rows.T @ rows, torch.eye(p)]), torch.rand(2, q)), 1),
        (LowRankKronecker(rows.T, torch.rand(p), torch.zeros(q, 0), torch.ones(q)), q),
    ):
        moment = operator.input_moment()
        traced = torch.einsum("iaib->ab", operator.matrix(q, p).reshape(q, p, q, p))
        full = moment if moment.ndim == 2 else moment.diag()
        torch.testing.assert_close(scale * full, traced, atol=1e-5, rtol=1e-5)
    assert Identity().input_moment() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_can_be_read_off_merged_and_compressed_priors_too(dtype):
    prior = estimate("kronecker")
    merged = ConsolidationPrior.merge([prior, prior], rank=2).compress(dtype=dtype)
    for one in (prior.compress(dtype=dtype), merged):
        words, _ = audit_tokens(one)
        assert set(words.seen) == set(range(9)) - {NEVER}
        assert words.counts
    # The same examples are not counted twice.
    assert int(merged.curvature.blocks[0].input_examples[SECRET]) == 2


def test_the_head_of_a_tied_weight_does_not_make_every_token_seen():
    rows = texts((3, 4))
    prior = ConsolidationPrior.estimate(
        llama(seed=0, vocab_size=VOCABULARY, tie_word_embeddings=True), rows, pad, task="notes"
    )
    read = {int(token) for row in rows for token in row["input_ids"]}
    for kind in (prior, prior.compress(dtype=torch.bfloat16)):
        (tied,) = audit_tokens(kind)
        assert set(tied.seen) == read != set(range(VOCABULARY))
