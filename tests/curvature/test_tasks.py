"""Regression, several labels and question answering: F of the loss of transformers' own heads."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tiny import models
from tiny.curvatures import LABELS, assert_equal_matrices, dense, images
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BartForQuestionAnswering,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    PreTrainedModel,
    RwkvConfig,
    RwkvForCausalLM,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_kfc.curvature import (
    Curvature,
    CurvatureArguments,
    Family,
    Labels,
    Outputs,
    default_forward,
    default_position_mask,
    estimate_curvature,
    exact_block_fisher,
    per_example_gradients,
)
from hf_kfc.curvature.likelihood import logit_gradients
from hf_kfc.errors import CurvatureError
from hf_kfc.training.strengths import count_labels

Rows = list[dict[str, Tensor]]
VOCABULARY, LENGTHS = 30, (5, 8, 6, 7)
ENDS = ("start_positions", "end_positions")


def bert(made: type[PreTrainedModel], **settings: Any) -> Any:
    return models.bert(made, vocab_size=VOCABULARY, max_position_embeddings=20, **settings)


def bart(**_: Any) -> Any:
    return models.bart(BartForQuestionAnswering, vocab_size=VOCABULARY, init_std=0.5)


def collate(rows: Rows, extra: int = 0) -> dict[str, Tensor]:
    ids = [row["input_ids"] for row in rows]
    length = max(map(len, ids)) + extra
    batch = {
        name: pad_sequence([*values, torch.zeros(length, dtype=torch.long)], True, 1)[:-1]
        for name, values in (("input_ids", ids),)
    }
    lengths = torch.tensor([len(row) for row in ids])
    batch["attention_mask"] = (torch.arange(length) < lengths[:, None]).long()
    return batch | {n: torch.stack([r[n] for r in rows]) for n in rows[0] if n != "input_ids"}


def numbers(*shape: int) -> Callable[[int], dict[str, Tensor]]:
    return lambda _: {"labels": torch.randn(shape)}


def several(_: int) -> dict[str, Tensor]:
    return {"labels": (torch.rand(3) < 0.5).double()}


def answers(length: int) -> dict[str, Tensor]:
    start = int(torch.randint(0, length, ()))
    return {ENDS[0]: torch.tensor(start), ENDS[1]: torch.randint(start, length, ())}


TASKS: dict[str, tuple[Callable[[], Any], Callable[[int], dict[str, Tensor]], Family, int]] = {
    "regression": (
        partial(bert, BertForSequenceClassification, num_labels=1), numbers(), Family.GAUSSIAN, 1,
    ),
    "two_numbers": (
        partial(bert, BertForSequenceClassification, num_labels=2, problem_type="regression"),
        numbers(2), Family.GAUSSIAN, 2,
    ),
    "several_labels": (
        partial(bert, BertForSequenceClassification, num_labels=3), several, Family.BERNOULLI, 3,
    ),
    "one_yes_or_no": (
        partial(
            bert, BertForSequenceClassification, num_labels=1,
            problem_type="multi_label_classification",
        ),
        lambda _: {"labels": (torch.rand(1) < 0.5).double()}, Family.BERNOULLI, 1,
    ),
    "answers": (partial(bert, BertForQuestionAnswering), answers, Family.CATEGORICAL, 2),
    "answers_of_decoders": (bart, answers, Family.CATEGORICAL, 2),
}  # fmt: skip
"""How to make the model, labels of an example, what they are, and how many an example has."""


def task(name: str) -> tuple[Any, Rows]:
    make, label, _, _ = TASKS[name]
    rows = [{"input_ids": torch.randint(2, VOCABULARY, (n,)), **label(n)} for n in LENGTHS]
    return make(), rows


def estimate(model: nn.Module, rows: Rows, extra: int = 0, **arguments: Any) -> Curvature:
    return estimate_curvature(
        model, rows, partial(collate, extra=extra), CurvatureArguments(**arguments)
    )


def own_gradients(model: nn.Module, rows: Rows, decisions: int) -> dict[str, Tensor]:
    """Gradients of the model's own loss of each example alone, times what it is a mean over."""
    model.train(False)
    found: dict[str, list[Tensor]] = {}
    for row in rows:
        loss = model(**collate([row])).loss * decisions
        for name, gradient in zip(
            dict(model.named_parameters()),
            torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True),
            strict=True,
        ):
            found.setdefault(name, []).append(gradient)
    return {name: torch.stack(gradients) for name, gradients in found.items()}


def assert_equal_diagonals(curvature: Curvature, gradients: dict[str, Tensor]) -> None:
    squares = {name: rows.square().sum(0) / len(LENGTHS) for name, rows in gradients.items()}
    largest = max(float(x.max()) for x in squares.values())
    assert curvature.parameters.keys() == squares.keys()
    for block in curvature.blocks:
        for name, found in block.split(block.operator.state()["diagonal"]).items():
            torch.testing.assert_close(found, squares[name], rtol=1e-9, atol=1e-12 * largest)


@pytest.mark.parametrize("name", TASKS)
def test_f_is_of_the_gradients_of_the_models_own_loss(name: str) -> None:
    model, rows = task(name)
    model.train(False)
    outputs = default_forward(model, collate(rows))
    assert outputs.family is TASKS[name][2]
    loss, decisions = model(**collate(rows[:1])).loss, TASKS[name][3]
    alone = default_forward(model, collate(rows[:1]))
    torch.testing.assert_close(alone.losses(), loss[None])
    diagonal = estimate(model, rows, curvature="diagonal", curvature_batch_size=3)
    assert_equal_diagonals(diagonal, own_gradients(model, rows, decisions))
    assert count_labels(rows, collate, ["labels", *ENDS]) == decisions * len(rows)


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", TASKS)
def test_diagonal_is_exact_for_every_kind_of_label(name: str, labels: str) -> None:
    model, rows = task(name)
    diagonal = estimate(model, rows, curvature="diagonal", labels=labels, curvature_batch_size=3)
    assert_equal_diagonals(diagonal, per_example_gradients(model, rows, collate, labels))


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", TASKS)
def test_neither_padding_nor_the_batch_size_counts(name: str, labels: str) -> None:
    model, rows = task(name)
    alone = images(estimate(model, rows, labels=labels, curvature_batch_size=1))
    for size, extra in ((3, 0), (4, 2)):
        found = images(estimate(model, rows, extra, labels=labels, curvature_batch_size=size))
        # What is computed once for a batch has factors by itself, and else its diagonal.
        same = {n for n in found if "position_embeddings" not in n and "embed_positions" not in n}
        # The softmax's gradients sum to zero over positions: a key's and the head's bias count not.
        counted = {n for n in same if float(alone[n].abs().max()) > 1e-15}
        assert len(counted) > 5
        assert_equal_matrices(
            {n: found[n] for n in counted}, {n: alone[n] for n in counted}, rtol=1e-9
        )


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("name", ["regression", "two_numbers", "several_labels", "one_yes_or_no"])
def test_factors_of_a_head_are_exact(name: str, labels: str) -> None:
    """A linear head on one vector of one example: F is A ⊗ G, without any approximation."""
    make, _, _, _ = TASKS[name]
    _, rows = task(name)
    model = make()
    rows = rows[:1]
    for parameter in model.bert.parameters():
        parameter.requires_grad_(False)
    curvature = estimate(model, rows, labels=labels)
    gradients = per_example_gradients(model, rows, collate, labels)
    assert_equal_matrices(dense(curvature), exact_block_fisher(gradients, 1, curvature))


@pytest.mark.parametrize("family", [Family.GAUSSIAN, Family.BERNOULLI])
def test_exact_is_the_mean_over_labels_that_the_model_draws(family: Family) -> None:
    """Against densities of torch, whose loss is the negative log-density up to a constant."""
    draws = 20000
    z = torch.tensor([0.3, -1.2]).expand(draws, 2).clone().requires_grad_()
    if family is Family.GAUSSIAN:
        density: Any = torch.distributions.Normal(z, 0.5**0.5)
    else:
        density = torch.distributions.Bernoulli(logits=z)
    drawn = density.sample()
    (expected,) = torch.autograd.grad(-density.log_prob(drawn).sum(), z)
    outputs = Outputs(z, drawn, family)
    (empirical,) = logit_gradients(outputs, Labels.EMPIRICAL, range(draws), 0)
    torch.testing.assert_close(empirical, expected)
    (sampled,) = logit_gradients(outputs, Labels.SAMPLED, range(draws), 0)
    exact = sum(v[0].outer(v[0]) for v in logit_gradients(outputs, Labels.EXACT, range(draws), 0))
    assert isinstance(exact, Tensor)
    for rows in (empirical, sampled):
        assert (rows.T @ rows / draws - exact).abs().max() < 0.05 * exact.max()
    one = Outputs(z[:1], drawn[:1], family)
    (alone,) = logit_gradients(one, Labels.SAMPLED, [7], 0)
    torch.testing.assert_close(alone[0], sampled[7])


@pytest.mark.parametrize("scores", [1, 2])
def test_the_penalty_of_numbers_is_the_rise_of_the_models_own_loss(scores: int) -> None:
    """A linear head's MSE is a quadratic: ½ ΔᵀFΔ is its rise, so that N_old / (2 N_new) fits it."""
    model = bert(BertForSequenceClassification, num_labels=scores, problem_type="regression")
    model.train(False)
    model.bert.requires_grad_(False)
    rows = [
        {"input_ids": torch.randint(2, VOCABULARY, (6,)), "labels": torch.randn(scores)}
        for _ in range(4)
    ]
    gradients = per_example_gradients(model, rows, collate, "exact")
    delta = {name: torch.randn_like(p) for name, p in model.classifier.named_parameters()}
    along = sum((gradients[f"classifier.{n}"] * d).flatten(1).sum(1) for n, d in delta.items())
    assert isinstance(along, Tensor)

    def loss(step: float) -> Tensor:
        moved = {n: p + step * delta[n] for n, p in model.classifier.named_parameters()}
        batch = collate(rows)
        pooled = model.bert(batch["input_ids"], batch["attention_mask"])[1]
        logits = torch.func.functional_call(model.classifier, moved, (pooled,))
        found: Tensor = model.loss_function(batch["labels"], logits, model.config) * scores
        return found

    rise = (loss(1.0) + loss(-1.0)) / 2 - loss(0.0)
    torch.testing.assert_close(rise, along.square().sum() / len(rows) / 2)


# --- question answering ---


def test_a_padded_position_is_no_answer() -> None:
    model, rows = task("answers")
    model.train(False)
    batch = collate(rows, 3)
    outputs = default_forward(model, batch)
    padded = ~batch["attention_mask"].bool()
    assert not outputs.logits.softmax(-1)[padded[:, None].expand_as(outputs.logits)].any()
    torch.testing.assert_close(
        outputs.logits[0, 0, : LENGTHS[0]], model(**collate(rows[:1])).start_logits[0]
    )


def test_positions_outside_of_the_text_are_no_decision() -> None:
    """As by transformers alone: what is below 0 is the first, and what is too large is ignored."""
    model, rows = task("answers")
    model.train(False)
    rows[1] |= {"end_positions": torch.tensor(LENGTHS[1])}
    rows[2] |= {"start_positions": torch.tensor(400), "end_positions": torch.tensor(-1)}
    labels = default_forward(model, collate(rows, 3)).labels
    assert (labels == -100).tolist() == [[False] * 2, [False, True], [True, False], [False] * 2]
    assert labels[2, 1] == 0
    found = estimate(model, rows, 3, curvature="diagonal", curvature_batch_size=3)
    assert_equal_diagonals(found, per_example_gradients(model, rows, collate))
    rows[1] |= {"end_positions": torch.tensor(0)}
    other = estimate(model, rows, 3, curvature="diagonal", curvature_batch_size=3)
    head = "qa_outputs.weight"
    changed, before = (next(b for b in c.blocks if head in b.shapes) for c in (other, found))
    assert not torch.equal(*(b.operator.state()["diagonal"] for b in (changed, before)))


def test_scores_of_other_positions_than_the_mask_are_refused() -> None:
    model, rows = task("answers")
    model.train(False)
    batch = collate(rows)
    batch["attention_mask"] = batch["attention_mask"][:, None, None].bool()
    with pytest.raises(CurvatureError, match="BertForQuestionAnswering gave logits of shape"):
        default_forward(model, batch)


def test_positions_of_labels_without_a_mask() -> None:
    found = [
        default_position_mask({"labels": torch.zeros(2, 3)}),
        default_position_mask({name: torch.zeros(2, 1, dtype=torch.long) for name in ENDS}),
    ]
    assert [mask.tolist() for mask in found] == [[True, True]] * 2


# --- other losses ---


class Scores(nn.Module):
    """A linear model with any loss of its own."""

    def __init__(self, scores: int, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.head = nn.Linear(4, scores)
        self.loss = loss

    def forward(self, x: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        logits = self.head(x)
        loss = None if labels is None else self.loss(logits, labels)
        return SequenceClassifierOutput(loss, logits)


F: Any = nn.functional
WEIGHTS = [1.0, 4.0, 2.0]
OTHER: dict[str, tuple[int, Callable[[Tensor, Tensor], Tensor], str]] = {
    "absolute": (1, lambda z, y: F.l1_loss(z[:, 0], y), "squared error"),
    "huber": (1, lambda z, y: F.huber_loss(z[:, 0], y, delta=0.1), "squared error"),
    "weighed_yes": (
        3,
        lambda z, y: F.binary_cross_entropy_with_logits(z, y, pos_weight=torch.tensor(WEIGHTS)),
        "binary cross-entropy",
    ),
    "weighed_classes": (
        3,
        lambda z, y: F.cross_entropy(z, y, torch.tensor(WEIGHTS)),
        "cross-entropy",
    ),
    "smoothed": (3, lambda z, y: F.cross_entropy(z, y, label_smoothing=0.2), "cross-entropy"),
}


@pytest.mark.parametrize("name", OTHER)
def test_another_loss_is_refused(name: str) -> None:
    scores, loss, family = OTHER[name]
    labels = {1: torch.tensor([3.0, -0.5]), 3: torch.tensor([[1.0, 0, 0], [1, 1, 0]])}[scores]
    if family == "cross-entropy":
        labels = torch.tensor([0, 1])
    rows = [{"x": torch.randn(4), "labels": y} for y in labels]
    with pytest.raises(CurvatureError, match=f"the loss of Scores is not the {family} of"):
        estimate_curvature(Scores(scores, loss), rows, torch.utils.data.default_collate)


class Streams(nn.Module):
    """Scores two decisions and returns one, as ProphetNet does, or scores anew for its loss."""

    def __init__(self, returned: int) -> None:
        super().__init__()
        self.head = nn.Linear(4, 6)
        self.returned = returned

    def forward(self, x: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        logits = self.head(x).view(-1, 2, 3)[:, 0]
        of_loss = self.head(x).view(-1, 2, 3)[:, : self.returned]
        loss = None
        if labels is not None:
            loss = F.cross_entropy(of_loss.flatten(0, 1), labels.repeat_interleave(self.returned))
        return SequenceClassifierOutput(loss, logits)


def test_a_loss_of_other_scores_than_are_returned_is_refused() -> None:
    rows = [{"x": torch.randn(4), "labels": torch.tensor(label)} for label in (2, 0, 1)]
    estimate_curvature(Streams(1), rows, torch.utils.data.default_collate)  # the same scores, anew
    with pytest.raises(CurvatureError, match="scores more than it returns"):
        estimate_curvature(Streams(2), rows, torch.utils.data.default_collate)


def test_also_of_a_model_that_has_learnt_nothing() -> None:
    """All its losses are nearly log K."""
    rows = [{"x": torch.randn(4), "labels": torch.tensor(label)} for label in (2, 0, 1)]
    model = Streams(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.01)
    with pytest.raises(CurvatureError, match="scores more than it returns"):
        estimate_curvature(model, rows, torch.utils.data.default_collate)


def test_a_loss_that_leaves_out_another_label_is_refused_with_a_hint() -> None:
    model = Scores(3, lambda z, y: F.cross_entropy(z.flatten(0, 1), y.flatten(), ignore_index=0))
    rows = [{"x": torch.randn(2, 4), "labels": torch.tensor([1, 0])} for _ in range(2)]
    with pytest.raises(CurvatureError, match=r"does not leave out labels of -100.*ignore_index"):
        estimate_curvature(model, rows, torch.utils.data.default_collate)


@pytest.mark.parametrize("form", [dict, tuple])
@pytest.mark.parametrize("labels", [(), (2,)], ids=["of_examples", "of_positions"])
def test_outputs_may_be_a_dict_or_a_tuple(form: type, labels: tuple[int, ...]) -> None:
    """As the Trainer reads them: a tuple is the loss, if there are labels, and the scores."""

    class Other(Scores):
        def forward(self, **batch: Any) -> Any:
            found = super().forward(**batch)
            return dict(found) if form is dict else found.to_tuple()

    def loss(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z.reshape(-1, 3), y.flatten())

    def curvature(model: nn.Module) -> dict[str, Tensor]:
        return dense(estimate_curvature(model, rows, torch.utils.data.default_collate))

    rows = [{"x": torch.randn(*labels, 4), "labels": torch.randint(3, labels)} for _ in range(4)]
    other, plain = Other(3, loss), Scores(3, loss)
    other.load_state_dict(plain.state_dict())
    assert_equal_matrices(curvature(other), curvature(plain))
    other.loss = lambda z, y: loss(20 * z, y)
    with pytest.raises(CurvatureError, match="the loss of Other is not the cross-entropy"):
        curvature(other)


def test_labels_may_have_a_dimension_of_their_own() -> None:
    """As of examples whose label is a list of one; a head of transformers takes them in a row."""
    model = Scores(3, lambda z, y: F.cross_entropy(z, y.view(-1)))
    rows = [{"x": torch.randn(4), "labels": torch.tensor(label)} for label in (2, 0, 1)]
    listed = [{**row, "labels": row["labels"][None]} for row in rows]
    found, plain = (
        estimate_curvature(model, data, torch.utils.data.default_collate) for data in (listed, rows)
    )
    assert_equal_matrices(dense(found), dense(plain))


class TwoHeads(nn.Module):
    """Learns by two losses, returns the scores of one, and does not run without labels."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.below, self.head, self.other = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3)
        self.share = share

    def forward(self, x: Tensor, labels: Tensor) -> SequenceClassifierOutput:
        hidden = self.below(x).tanh()
        logits = self.head(hidden)
        loss = F.cross_entropy(logits, labels)
        if self.share:
            loss = loss + self.share * F.cross_entropy(self.other(hidden), labels)
        return SequenceClassifierOutput(loss, logits)


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_another_head_that_the_loss_teaches_is_not_left_free(share: float) -> None:
    rows = [{"x": torch.randn(4), "labels": torch.tensor(label)} for label in (2, 0, 1)]
    model = TwoHeads(share)

    def estimated(*ignore: str) -> Any:
        args = CurvatureArguments(curvature="diagonal", ignore=list(ignore))
        return estimate_curvature(model, rows, torch.utils.data.default_collate, args)

    if share:
        with pytest.raises(CurvatureError, match=r"do not tell, by which 2 parameters.*other\.w"):
            estimated()
    found = estimated("other") if share else estimated()
    expected = torch.zeros(3)
    for row in rows:
        scores = model.head(model.below(row["x"]).tanh()).detach()
        expected += (scores.softmax(-1) - F.one_hot(row["labels"], 3)).square() / len(rows)
    block = next(block for block in found.blocks if block.name == "head")
    bias = block.split(block.operator.diagonal)["head.bias"]
    torch.testing.assert_close(bias, expected)


def weighed(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z.reshape(-1, 3), y.flatten(), torch.tensor([1.0, 2, 4]))


def mean_of_means(z: Tensor, y: Tensor) -> Tensor:
    each, labelled = F.cross_entropy(z.mT, y, reduction="none"), y != -100
    return ((each * labelled).sum(1) / labelled.sum(1)).mean()


FIRST_ALIKE: dict[str, tuple[int, Callable[[Tensor, Tensor], Tensor], list[Any]]] = {
    "weighed_classes": (3, weighed, [2, 2, 1, 0]),
    "weighed_classes_of_positions": (3, weighed, [[0, 0], [0, 0], [1, 2]]),
    "positions_count_by_example": (3, mean_of_means, [[0, 1], [2, 0], [1, -100]]),
    "weighed_yes": (
        3,
        lambda z, y: F.binary_cross_entropy_with_logits(z, y, pos_weight=torch.tensor(5.0)),
        [[0.0, 0, 0], [0, 0, 0], [1, 1, 0]],
    ),
    "linear_far_away": (1, lambda z, y: F.huber_loss(z[..., 0], y), [0.01, 0.02, 40.0]),
    "linear": (1, lambda z, y: F.l1_loss(z[..., 0], y), [90.0, 91.0, -4.0]),
}
"""Scores, losses and labels whose first two examples do not show what else the loss is."""


@pytest.mark.parametrize("name", FIRST_ALIKE)
def test_another_loss_shows_although_the_first_examples_are_alike(name: str) -> None:
    scores, loss, labels = FIRST_ALIKE[name]
    inputs = (2, 4) if isinstance(labels[0], list) and isinstance(labels[0][0], int) else (4,)
    rows = [{"x": torch.randn(inputs), "labels": torch.tensor(label)} for label in labels]
    with pytest.raises(CurvatureError, match="the loss of Scores is not the"):
        estimate_curvature(Scores(scores, loss), rows, torch.utils.data.default_collate)


@pytest.mark.parametrize("scale", [1e-3, 1.0])
@pytest.mark.parametrize("shape", [(), (2,)], ids=["of_examples", "of_positions"])
def test_smoothed_labels_show_although_the_model_has_learnt_nothing(
    shape: tuple[int, ...], scale: float
) -> None:
    """Where all classes are as likely, smoothing is nearly a factor of the gradient."""

    def smoothed(z: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(z.reshape(-1, 3), y.flatten(), label_smoothing=0.02)

    rows = [{"x": torch.randn(*shape, 4), "labels": torch.randint(3, shape)} for _ in range(4)]
    model = Scores(3, smoothed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    with pytest.raises(CurvatureError, match="smooths labels"):
        estimate_curvature(model, rows, torch.utils.data.default_collate)


@pytest.mark.parametrize("problem", [None, "multi_label_classification"])
def test_labels_of_yes_or_no_in_whole_numbers_are_refused(problem: str | None) -> None:
    model = bert(BertForSequenceClassification, num_labels=3, problem_type=problem)
    rows = [
        {"input_ids": torch.randint(2, VOCABULARY, (5,)), "labels": torch.tensor([1, 0, 1])}
    ] * 2
    with pytest.raises(CurvatureError, match=r"return labels\.float\(\)"):
        estimate_curvature(model, rows, torch.utils.data.default_collate)
    own = Scores(3, lambda z, y: F.binary_cross_entropy_with_logits(z, y.to(z)))
    rows = [{"x": torch.randn(4), "labels": row["labels"]} for row in rows]
    with pytest.raises(CurvatureError, match=r"return labels\.float\(\)"):
        estimate_curvature(own, rows, torch.utils.data.default_collate)


@pytest.mark.parametrize(
    ("family", "label", "message"),
    [
        (Family.GAUSSIAN, float("nan"), "label nan is no number"),
        (Family.BERNOULLI, -100.0, r"label -100\.0 is no probability"),
        (Family.BERNOULLI, 2.0, r"label 2\.0 is no probability"),
    ],
)
def test_labels_out_of_range_are_refused(family: Family, label: float, message: str) -> None:
    def forward(model: nn.Module, batch: Any) -> Outputs:
        return Outputs(model(batch["x"]).logits, batch["labels"], family)

    rows = [{"x": torch.randn(4), "labels": torch.tensor([label])}]
    with pytest.raises(CurvatureError, match=message):
        estimate_curvature(
            Scores(1, F.mse_loss), rows, torch.utils.data.default_collate, forward=forward
        )


def test_numbers_in_another_shape_are_refused() -> None:
    rows = [{"x": torch.randn(4), "labels": torch.randn(2)} for _ in range(2)]
    with pytest.raises(CurvatureError, match=r"logits of shape \[2, 3\] for labels .*\[2, 2\]"):
        estimate_curvature(Scores(3, F.mse_loss), rows, torch.utils.data.default_collate)


# --- caches ---


def test_no_cache_is_kept_and_the_config_stays() -> None:
    model, rows = task("regression")
    seen: list[bool] = []
    model.config.use_cache = True
    model.bert.register_forward_pre_hook(lambda *_: seen.append(model.config.use_cache))
    estimate(model, rows)
    assert seen
    assert not any(seen), "the model was to keep a cache"
    assert model.config.use_cache
    assert model.config.problem_type is None, "a loss has left its problem type"


def test_a_model_that_writes_to_its_cache_in_place() -> None:
    config = RwkvConfig(vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=2)
    model: Any = RwkvForCausalLM(config).double()
    rows = [{"input_ids": (ids := torch.randint(2, VOCABULARY, (6,))), "labels": ids}] * 4
    found = estimate(model, rows, curvature="diagonal")
    assert model.config.use_cache
    assert_equal_diagonals(found, per_example_gradients(model, rows, collate))
