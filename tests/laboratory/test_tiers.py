"""What the methods do to a tier, each against what its formula says."""

import functools
from dataclasses import replace

import pytest
import torch

from hf_kfc.curvature import CurvatureArguments
from hf_kfc.errors import ConsolidationError
from hf_kfc.ranking import CandidateCollator, CnnForMultipleChoice
from hf_kfc.training import ConsolidationPenalty
from laboratory import DataArguments, LearningArguments, Method, RankerArguments, tiers
from laboratory.data import random_examples
from laboratory.lora import add_lora, merge_lora
from laboratory.tiers import averaged, kept_examples, learn, make_prior, prepare

ARGS = LearningArguments(epochs=1, batch_size=8, learning_rate=0.01)


@pytest.fixture(scope="module")
def stage(examples_cache):
    """A new ranker, what makes its batches, and a task."""
    data = DataArguments(train_examples=48, validation_examples=8, test_examples=8)
    ranker = RankerArguments(hidden_size=8, vocab_size=500)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", examples_cache)
        start, tokenizer, (task,) = prepare(ranker, 0, [("articles", data)], CurvatureArguments())
    return start, CandidateCollator(tokenizer), task


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_every_tier_trains_in_the_precision_that_was_asked_for(stage, monkeypatch):
    autocast: list[bool] = []
    original = CnnForMultipleChoice.forward

    @functools.wraps(original)  # the Trainer reads its signature
    def forward(self, *args, **kwargs):
        if self.training:
            autocast.append(torch.is_autocast_enabled("cpu"))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(CnnForMultipleChoice, "forward", forward)
    start, collator, task = stage
    args = replace(ARGS, bf16=True, batch_size=48)
    first = learn(start, task, collator, args)
    first.accuracy(task.test)
    learn(first.model, task, collator, args)
    assert autocast == [True, True]


def test_the_penalty_is_as_cheap_as_was_asked_for(stage, monkeypatch):
    start, collator, task = stage
    learned = learn(start, task, collator, ARGS)
    prior = make_prior(Method.parse("kfc"), learned, task, collator, CurvatureArguments(), {})
    rounded, make = [], ConsolidationPenalty.__init__

    def noted(self, *args, dtype=None, **kwargs):
        rounded.append(dtype)
        make(self, *args, dtype=dtype, **kwargs)

    monkeypatch.setattr(ConsolidationPenalty, "__init__", noted)
    args = replace(ARGS, strengths=[1.0], penalty_dtype="bfloat16")
    learn(learned.model, task, collator, args, [prior])
    assert rounded == [torch.bfloat16]
    seldom = learn(learned.model, task, collator, replace(args, penalty_every=7), [prior])
    plain = learn(learned.model, task, collator, ARGS)
    for own, other in zip(seldom.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(own, other)  # six steps are too few for any penalty
    with pytest.raises(ConsolidationError, match="penalty_dtype is float16; give one of float32"):
        replace(args, penalty_dtype="float16")


def test_lora_moves_every_matrix_by_at_most_its_rank_and_nothing_else(stage):
    start, collator, task = stage
    before = state(start)
    learned = learn(start, task, collator, ARGS, method=Method.parse("lora:2"))
    assert type(learned.model) is CnnForMultipleChoice
    assert all(parameter.requires_grad for parameter in learned.model.parameters())
    after = state(learned.model)
    assert after.keys() == before.keys()
    for name, old in before.items():
        assert torch.equal(start.state_dict()[name], old)  # the start is left as it is
        if old.ndim == 1:
            assert torch.equal(after[name], old), name
        else:
            moved = (after[name] - old).flatten(1).double()
            assert 1 <= torch.linalg.matrix_rank(moved, rtol=1e-4) <= 2, name
    assert 0 <= learned.accuracy(task.test) <= 1


def test_a_new_low_rank_update_changes_nothing(stage):
    start, collator, task = stage
    model = tiers.copy.deepcopy(start).eval()
    batch = {k: v for k, v in collator(task.test).items() if k not in ("labels", "candidate_mask")}
    wanted = model(**batch).logits
    wrapped = add_lora(model, 4)
    assert torch.equal(wrapped(**batch).logits, wanted)
    assert torch.allclose(merge_lora(wrapped)(**batch).logits, wanted)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ("lower_lr:0.5", [0.5 * k / 6 for k in (6, 5, 4, 3, 2, 1)]),
        ("late_decay:0.5", [1, 1, 1, 1, 0.75, 0.25]),  # half a cosine over the last 3 of 6 steps
    ],
)
def test_learning_rates_fall_as_the_method_says(name, expected, stage, monkeypatch):
    rates: list[float] = []
    original = tiers.RivalTrainer.training_step

    def training_step(self, *args, **kwargs):
        rates.append(self.optimizer.param_groups[0]["lr"] / 0.01)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(tiers.RivalTrainer, "training_step", training_step)
    start, collator, task = stage
    learn(start, task, collator, ARGS, method=Method.parse(name))
    assert rates == pytest.approx(expected, abs=1e-6)


def test_what_is_kept_is_drawn_once_of_each_task(stage):
    task = stage[2]
    other = replace(task, name="other", train=task.train[::-1][:40])
    method = Method.parse("replay:0.25")
    kept = kept_examples(method, [task, other], seed=3)
    assert len(kept) == 12 + 10
    assert kept[:12] == kept_examples(method, [task], seed=3)
    assert kept[:12] != kept_examples(method, [task], seed=4)
    assert kept_examples(Method.parse("kfc"), [task], seed=3) == []


def test_averages_have_equal_weights_over_all_tiers(stage):
    start, collator, task = stage
    second = learn(start, task, collator, ARGS)
    mean = averaged(start, second, 2, collator, ARGS)
    third = learn(mean.model, task, collator, replace(ARGS, seed=1))
    mean_of_three = averaged(mean.model, third, 3, collator, ARGS)
    parts = [state(model) for model in (start, second.model, third.model)]
    for name, value in mean_of_three.model.state_dict().items():
        wanted = sum(part[name].double() for part in parts) / 3
        torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=1e-6)


def test_random_examples_are_made_of_the_vocabulary_alone(stage):
    tokenizer = stage[1].tokenizer
    examples = random_examples(tokenizer, 5, seed=1, candidates=4, tokens=20)
    assert examples == random_examples(tokenizer, 5, seed=1, candidates=4, tokens=20)
    assert examples != random_examples(tokenizer, 5, seed=2, candidates=4, tokens=20)
    separator = tokenizer.sep_token_id
    for example in examples:
        assert [len(ids) for ids in example["input_ids"]] == [20] * 4
        assert [len(types) for types in example["token_type_ids"]] == [20] * 4
        assert 0 <= example["labels"] < 4
        for ids, types in zip(example["input_ids"], example["token_type_ids"], strict=True):
            special = [i for i, token in enumerate(ids) if token in tokenizer.all_special_ids]
            assert special == [0, types.index(1) - 1, 19]
            assert (ids[special[1]], ids[19]) == (separator, separator)


def test_a_data_free_prior_sees_no_example_of_the_task(stage):
    start, collator, task = stage
    learned = tiers.as_learned(start, collator, ARGS)
    method, args = Method.parse("data_free"), CurvatureArguments(max_curvature_examples=16)
    unread = replace(task, train=[{} for _ in task.train])  # reading one would fail
    prior = make_prior(method, learned, unread, collator, args, {})
    assert prior.provenance.num_examples == 16
    assert (prior.provenance.labels, prior.provenance.curvature) == ("sampled", "kronecker")
    factors = prior.curvature.blocks[0].operator.state()
    seen = make_prior(Method.parse("kfc"), learned, task, collator, args, {})
    assert not torch.equal(factors["A"], seen.curvature.blocks[0].operator.state()["A"])
