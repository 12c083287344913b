"""Attacks on what a published prior's factors span: were tokens that it left out in the data?

A word embedding, put through the embedding's LayerNorm with every position, is an input of layer 0;
if its text was in the data it lies in the span of that layer's A. Tokens planted in a few texts are
held against tokens that no text has.
"""

from collections.abc import Iterator

import pytest
import torch
from tiny.models import bert
from torch import Tensor
from torch.utils.data import default_collate
from transformers import BertForSequenceClassification

from hf_kfc import ConsolidationPrior, CurvatureArguments
from hf_kfc.audit.membership import area_under_curve
from hf_kfc.audit.span import difference_auc, span_auc
from hf_kfc.priors.privacy import without_rare_inputs

TEXTS, LENGTH, COMMON, WIDTH = 100, 8, 22, 96
UNKNOWN, FIRST, VOCABULARY = 1, 40, 400
PLANTED = {1: range(40, 58), 2: range(58, 66), 4: range(66, 74), 9: range(74, 82)}
ABSENT = range(82, VOCABULARY)
QUERY = "bert.encoder.layer.0.attention.self.query"


def model() -> BertForSequenceClassification:
    made: BertForSequenceClassification = bert(
        BertForSequenceClassification,
        seed=0,
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=16,
        max_position_embeddings=LENGTH,
        initializer_range=0.02,
    )
    return made


def texts() -> list[dict[str, Tensor]]:
    """A hundred texts of common tokens, with each planted one in as many texts as it is to be."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 2 + COMMON, (TEXTS, LENGTH), generator=generator)
    slots = iter(torch.randperm(TEXTS * 4, generator=generator).tolist())
    for count, tokens in PLANTED.items():
        for token in tokens:
            free = _texts_without(ids, token, slots)
            for _ in range(count):
                text, place = next(free)
                ids[text, place] = token
    return [{"input_ids": row, "labels": torch.tensor(n % 2)} for n, row in enumerate(ids)]


def _texts_without(ids: Tensor, token: int, slots: Iterator[int]) -> Iterator[tuple[int, int]]:
    for slot in slots:
        text, place = slot % TEXTS, 1 + slot // TEXTS
        if token not in ids[text]:
            yield text, place


def published(data: list[dict[str, Tensor]], min_token_examples: int) -> ConsolidationPrior:
    args = CurvatureArguments(
        min_token_examples=min_token_examples, unknown_token_id=UNKNOWN, ignore=["LayerNorm"]
    )
    prior = ConsolidationPrior.estimate(model(), data, default_collate, args, task="notes")
    return without_rare_inputs(prior)


def second_moment(prior: ConsolidationPrior) -> Tensor:
    """Return A of the first layer that reads the embeddings, without its bias."""
    (block,) = (b for b in prior.curvature.blocks if b.name == QUERY)
    moment = block.operator.input_moment()
    assert moment is not None
    return moment[:WIDTH, :WIDTH].double()


def inputs() -> Tensor:
    """Return what layer 0 would read of every token at every position [V, R, p]."""
    embeddings = model().eval().bert.embeddings
    ids = torch.arange(VOCABULARY)[:, None].expand(-1, LENGTH)
    with torch.no_grad():
        return embeddings(input_ids=ids).double()


def in_span(moment: Tensor, tokens: range) -> Tensor:
    """Score tokens by how cheap they are under A, at the position where they are cheapest."""
    shift = 1e-6 * moment.diagonal().mean() * torch.eye(WIDTH, dtype=moment.dtype)
    x = inputs()[list(tokens)]
    leverage = ((x @ torch.linalg.inv(moment + shift)) * x).sum(-1)
    return -leverage.amin(1)


def mean_auc(moment: Tensor, count: int) -> float:
    """Attack a prior that is the same whichever tokens were planted: the mean over 20 choices."""
    generator = torch.Generator().manual_seed(2)
    scores, found = in_span(moment, range(FIRST, VOCABULARY)), []
    for _ in range(20):
        order = torch.randperm(len(scores), generator=generator)
        planted, absent = order[: len(PLANTED[count])], order[-len(ABSENT) :]
        found.append(area_under_curve(scores[planted], scores[absent])[0])
    return sum(found) / len(found)


@pytest.mark.parametrize("count", PLANTED)
def test_a_token_that_was_left_out_is_not_in_the_span_of_a_later_layer(count: int) -> None:
    data = texts()
    whole, unseen = published(data, 0), published(data, 10)
    for prior in (whole, unseen):
        kept = prior.curvature.blocks[0].inputs
        assert kept is not None
        assert not set(kept.tolist()) & {*range(FIRST, VOCABULARY)}
    scores = (in_span(second_moment(whole), tokens) for tokens in (PLANTED[count], ABSENT))
    assert area_under_curve(*scores)[0] > 0.9
    assert mean_auc(second_moment(unseen), count) <= 0.55


def test_two_revisions_do_not_tell_the_rare_tokens_of_one_text() -> None:
    """With the numbers of positions, the difference of two sums of inputs is that of one text."""
    data = texts()
    secret = [int(token) for token in data[7]["input_ids"] if token >= FIRST]
    aucs = {}
    for before in (0, 10):
        whole, less = (second_moment(published(own, before)) for own in (data, data[:7] + data[8:]))
        difference = TEXTS * LENGTH * whole - (TEXTS - 1) * LENGTH * less
        _, vectors = torch.linalg.eigh(difference)
        x = inputs()
        own = (x @ vectors[:, -LENGTH:]).square().sum(-1) / x.square().sum(-1)
        scores = own.amax(1)
        auc, *_ = area_under_curve(scores[secret], scores[list(ABSENT)])
        aucs[before] = auc
    assert aucs[0] > 0.9
    assert aucs[10] <= 0.55


def test_the_published_prior_is_the_same_whichever_rare_tokens_the_data_held() -> None:
    """No attack at all tells what is bit for bit the same."""
    data, other = texts(), texts()
    for example in other:
        ids = example["input_ids"]
        ids[ids >= FIRST] += 200
    assert published(data, 10).fingerprint == published(other, 10).fingerprint
    assert published(data, 0).fingerprint != published(other, 0).fingerprint


@pytest.mark.parametrize("before", [0, 10])
def test_the_audit_makes_the_attack(before: int) -> None:
    data = texts()
    found = span_auc(published(data, before), model(), data, default_collate)
    assert found is not None
    assert found.score == f"rare tokens by inputs of {QUERY}"
    moment = second_moment(published(data, before))
    by_hand = area_under_curve(in_span(moment, range(FIRST, ABSENT.start)), in_span(moment, ABSENT))
    assert found.auc == pytest.approx(by_hand[0], abs=0.02)  # it reads the bias's input too
    assert (found.auc > 0.9) is (before == 0)


def test_there_is_no_such_attack_without_such_a_layer_or_such_tokens() -> None:
    data = texts()
    prior, own = published(data, 0), model()
    assert span_auc(prior, own, data, default_collate, min_examples=1) is None
    other = prior.without("bert.encoder.*").without(["bert.pooler.*", "classifier"])
    assert span_auc(other, own, data, default_collate) is None


@pytest.mark.parametrize("before", [0, 10])
def test_the_audit_tells_two_revisions_apart(before: int) -> None:
    data = texts()
    added = [data[7], data[40]]
    less = [example for n, example in enumerate(data) if n not in (7, 40)]
    new, old = published(data, before), published(less, before)
    found = difference_auc(new, old, model(), data, added, default_collate)
    assert found is not None
    assert found.score == f"rare tokens of added examples by inputs of {QUERY}"
    assert (found.auc > 0.9) is (before == 0)
    if before:  # of six tokens
        assert found.low < 0.55
