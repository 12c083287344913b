"""What a model makes of an example depends on its batch: then it sees one example at a time."""

from typing import Any

import pytest
import torch
from tiny.curvatures import assert_equal_matrices, dense, estimate, oracle
from tiny.layers import CLASSES, Logits, vectors
from tiny.models import llama
from torch import Tensor, nn
from torch.utils.data import default_collate
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_kfc.curvature import CurvatureArguments, Outputs, estimate_curvature
from hf_kfc.curvature.gradient_check import to_teach
from hf_kfc.errors import CurvatureError


def of_mean(m: Any, x: Tensor) -> Tensor:
    """Padding counts in the mean, and no mask tells it."""
    return m.head(m.below(x).tanh().mean(1))


def of_sum(m: Any, x: Tensor) -> Tensor:
    """It knows padding by its zeros: the scores do not depend on it, and A would be of it."""
    return m.head((m.below(x).tanh() * x.any(-1, keepdim=True)).sum(1))


def as_often_as_long(m: Any, x: Tensor) -> Tensor:
    """A layer is called once for each position, of padding too."""
    states = [m.below(token).tanh() * token.any(-1, keepdim=True) for token in x.unbind(1)]
    return m.head(torch.stack(states).sum(0))


def mixed(m: Any, x: Tensor) -> Tensor:
    out = m.head(m.below(x).tanh().sum(1))
    return out - 0.5 * out.mean(0)


def of_two(m: Any, x: Tensor) -> Tensor:
    return m.head(m.below(x if len(x) == 2 else x + 1).tanh().sum(1))


def full_at_three(m: Any, x: Tensor) -> Tensor:
    """As experts of a capacity: from the fourth example on no more fit, which two do not show."""
    hidden = m.below(x).tanh().sum(1)
    return m.head(hidden * (torch.arange(len(x)) < 3)[:, None] + 0.1)


def in_steps(m: Any, x: Tensor) -> Tensor:
    """As activations that are rounded by the range of their batch."""
    step = x.detach().abs().max() / 20
    return m.head(m.below((x / step).round() * step).tanh().sum(1))


def one_of_four(m: Any, x: Tensor) -> Tensor:
    """As a choice of the largest of equal numbers: it falls otherwise for one with padding."""
    second = (torch.arange(len(x)) == 1) & (len(x) == 4)
    return m.head((m.below(x).tanh() * x.any(-1, keepdim=True)).sum(1) + second[:, None])


EVERY = (of_mean, of_sum, as_often_as_long, mixed, of_two, full_at_three, in_steps)
RUNS = {run.__name__: run for run in EVERY}


def padded(rows: list[Any]) -> dict[str, Tensor]:
    x = nn.utils.rnn.pad_sequence([row["x"] for row in rows], batch_first=True)
    return {"x": x, "labels": torch.stack([row["labels"] for row in rows])}


def make(run: Any) -> tuple[nn.Module, list[Any]]:
    model = Logits(run, below=nn.Linear(4, 4), head=nn.Linear(4, CLASSES))
    return model, [vectors(1, length, 4)[0] for length in (3, 2, 4, 3, 2, 4, 3)]


def attended(batch: Any) -> Tensor:
    return batch["x"].any(-1)


def test_each_with_padding_in_a_small_first_batch_is_held_to_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, data = make(one_of_four)
    rows = [
        data[2],
        data[0],
        data[1],
        data[2],
    ]  # of it neither the first, the last nor the shortest
    estimate(model, rows, padded, position_mask=attended)
    assert "anew with one example at a time (of Logits)" in caplog.text


def test_padding_that_only_a_second_batch_has_is_found(caplog: pytest.LogCaptureFixture) -> None:
    """GLM's and Funnel's small ones of the survey do not show it in a first batch of two."""
    model, data = make(of_mean)
    rows = [data[0], data[3], data[1], data[2]]  # of 3, 3, 2 and 4 tokens
    estimate(model, rows, padded, curvature_batch_size=2)
    assert "anew with one example at a time (of Logits)" in caplog.text


@pytest.mark.parametrize("curvature", ["diagonal", "kronecker", "kronecker_eigen"])
@pytest.mark.parametrize("name", RUNS)
def test_it_is_that_of_each_example_alone(
    name: str, curvature: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, data = make(RUNS[name])
    found = estimate(model, data, padded, curvature=curvature, curvature_batch_size=6)
    assert "anew with one example at a time (of Logits)" in caplog.text
    caplog.clear()
    alone = estimate(model, data, padded, curvature=curvature, curvature_batch_size=1)
    assert not caplog.text
    assert {block.operator.kind for block in found.blocks} == {curvature}
    assert_equal_matrices(dense(found), dense(alone))
    if curvature == "diagonal":
        exact = oracle(model, data, found, collator=padded)
        assert_equal_matrices(dense(found), {k: v.diagonal().diag() for k, v in exact.items()})


def test_what_does_not_depend_on_it_is_estimated_in_batches(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, data = make(of_sum)
    estimate(model, data, padded, position_mask=attended, curvature_batch_size=6)
    assert not caplog.text


class Convolved(nn.Module):
    """A convolution over tokens whose effect on the scores is rounding: the factors show it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.conv = nn.Embedding(9, 4), nn.Conv1d(4, 4, 3, padding=1)
        self.scores = nn.Linear(4, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        x = self.embed(input_ids)
        hidden = x + 1e-7 * self.conv(x.mT).mT
        kept = hidden * attention_mask[..., None]
        return SequenceClassifierOutput(logits=self.scores(kept).sum(1))


class Texts:
    """A collator that pads on a side, and may put another token at a place it draws."""

    def __init__(self, left: bool, random: bool) -> None:
        self.left, self.random = left, random

    def __call__(self, rows: list[Any]) -> dict[str, Tensor]:
        longest = max(len(row["ids"]) for row in rows)
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            length = len(row["ids"])
            own = slice(longest - length, None) if self.left else slice(length)
            ids[number, own], mask[number, own] = row["ids"], 1
        if self.random:
            ids = torch.where((torch.rand(ids.shape) < 0.2) & (mask > 0), 8, ids)
        labels = torch.stack([row["labels"] for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("random", [False, True])
@pytest.mark.parametrize("left", [False, True])
def test_padding_that_factors_alone_would_hold_is_found(
    left: bool, random: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Of texts of one length first: not the two that are looked at before, but the whole batch."""
    model = Convolved()
    data = [
        {"ids": torch.randint(1, 8, (length,)), "labels": torch.tensor(length % CLASSES)}
        for length in (6, 6, 3, 5, 4)
    ]
    collate = Texts(left, random)
    found = estimate(model, data, collate)
    assert "depends on its padding" in caplog.text
    if not random:
        assert_equal_matrices(
            dense(found), dense(estimate(model, data, collate, curvature_batch_size=1))
        )


def test_a_collator_that_draws_does_not_make_examples_depend(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Convolved()
    nn.init.zeros_(model.conv.weight)
    nn.init.zeros_(model.conv.bias)
    data = [{"ids": torch.randint(1, 8, (6,)), "labels": torch.tensor(1)} for _ in range(5)]
    estimate(model, data, Texts(left=False, random=True), ignore=["conv"])
    assert not caplog.text


@pytest.mark.parametrize("size", [1, 4])
def test_what_is_random_in_evaluation_mode_is_refused(size: int) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        return m.head(nn.functional.dropout(x, 0.5, training=True))

    def forward(m: nn.Module, batch: Any) -> Outputs:
        return Outputs(m(batch["x"]).logits, batch["labels"])

    model = Logits(run, head=nn.Linear(40, CLASSES))
    with pytest.raises(CurvatureError, match="something else of the same example each time"):
        estimate(model, vectors(5, 40), forward=forward, curvature_batch_size=size)


def from_all(x: Tensor) -> Tensor:
    return x.mean(0, keepdim=True).expand_as(x)


def from_next(x: Tensor) -> Tensor:
    return x.roll(-1, 0)


def from_pair(x: Tensor) -> Tensor:
    return x[(torch.arange(len(x)) ^ 1).clamp(max=len(x) - 1)]


def from_earlier(x: Tensor) -> Tensor:
    return x.cumsum(0) - x


def from_first(x: Tensor) -> Tensor:
    return x[:1].expand_as(x)


def from_sorted(x: Tensor) -> Tensor:
    return x[x.flatten(1).sum(1).argsort()]


MIXTURES = {
    f.__name__: f for f in (from_all, from_next, from_pair, from_earlier, from_first, from_sorted)
}


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("name", MIXTURES)
def test_what_goes_from_one_example_to_another_is_found_however_small(
    name: str, batch: int, caplog: pytest.LogCaptureFixture
) -> None:
    """It is rounding in what an example is in company: its gradient alone, by one backward pass
    of one example, tells it; in a later batch too, which is unlike the first ones."""

    def run(m: Any, x: Tensor) -> Tensor:
        hidden = m.below(x)
        unlike = (x[:, :1] > 5) & (len(x) > 2)  # not in the batch that is looked at before
        return m.head((hidden + 1e-6 * unlike * MIXTURES[name](hidden)).tanh())

    model = Logits(run, below=nn.Linear(4, 4), head=nn.Linear(4, CLASSES))
    data = vectors(6 * batch, 4)
    for row in data[6 * (batch - 1) :]:
        row["x"][0] = 6.0
    caplog.set_level("INFO")
    found = estimate(model, data, curvature_batch_size=6)
    assert "layer 'below': its output is not separate for each example of a batch" in caplog.text
    assert {b.name: b.operator.kind for b in found.blocks}["head"] == "kronecker"


@pytest.mark.parametrize("examples", [2, 3, 4, 7, 8, 33])
def test_each_two_examples_are_parted_in_one_of_a_few_batches(examples: int) -> None:
    looks = [to_teach(4**k, examples) for k in range((examples - 1).bit_length())]
    parted = torch.stack([look[:, None] != look for look in looks if look is not None])
    assert bool((parted.any(0) | torch.eye(examples, dtype=torch.bool)).all())
    even = torch.arange(0, examples - 1, 2)
    assert bool(parted[:, even, even + 1].all())  # each of a pair in each
    assert to_teach(2, examples) is to_teach(6, examples) is to_teach(1, 1) is None


def test_checks_cost_few_examples_more(caplog: pytest.LogCaptureFixture) -> None:
    """Of 64 texts in batches of 8: two beforehand, read twice, and six alone."""
    model, read = llama(num_hidden_layers=1, vocab_size=40), []
    model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    ids = torch.randint(model.config.vocab_size, (64, 6))
    data = [{"input_ids": row, "labels": row} for row in ids]
    estimate_curvature(model, data, default_collate, CurvatureArguments(curvature_batch_size=8))
    assert not caplog.text
    assert sum(read) == 64 + 2 * 2 + 6
    assert len(read) == 8 + 2 + 6
