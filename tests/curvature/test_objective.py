"""Logit gradients, and the checks of what a batch and a model give."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import GPT2Config, GPT2LMHeadModel

from hf_kfc.curvature import Labels, Outputs, default_forward, default_position_mask
from hf_kfc.curvature.likelihood import logit_gradients
from hf_kfc.curvature.objective import _LabelledRows
from hf_kfc.errors import CurvatureError

MASKED = torch.finfo(torch.float64).min


def gradients(logits: Tensor, labels: Tensor, kind: str, seed: int = 0) -> list[Tensor]:
    keys = range(len(logits))
    return list(logit_gradients(Outputs(logits, labels), Labels(kind), keys, seed))


def test_empirical_is_the_gradient_of_the_cross_entropy() -> None:
    logits = torch.randn(4, 3, 5, requires_grad=True)
    labels = torch.tensor([[0, 4, -100], [-100, -100, -100], [1, 2, 3], [3, -100, 0]])
    loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    (expected,) = torch.autograd.grad(loss, logits)
    (actual,) = gradients(logits, labels, "empirical")
    torch.testing.assert_close(actual, expected)
    assert not actual.requires_grad


@settings(max_examples=20, deadline=None)
@given(classes=st.integers(2, 5), tokens=st.integers(0, 3), seed=st.integers(0, 2**16))
def test_exact_is_the_covariance_of_the_residual(classes: int, tokens: int, seed: int) -> None:
    """Σ V Vᵀ = diag(p) − p pᵀ per decision, and nothing between decisions."""
    torch.manual_seed(seed)
    leading = (2, tokens) if tokens else (2,)
    logits, labels = torch.randn(*leading, classes), torch.randint(-1, classes, leading)
    labels[labels < 0] = -100
    p = logits.softmax(-1)
    for n in range(2):
        rows = [v[n].reshape(-1) for v in gradients(logits, labels, "exact")]
        actual = sum((r.outer(r) for r in rows), torch.zeros(logits[n].numel(), logits[n].numel()))
        parts = [
            (q.diag() - q.outer(q)) * (label != -100)
            for q, label in zip(p[n].reshape(-1, classes), labels[n].reshape(-1), strict=True)
        ]
        torch.testing.assert_close(actual, torch.block_diag(*parts))


def test_sampled_labels_have_the_models_frequencies() -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, MASKED])
    draws = 4000
    keys = range(draws)
    outputs = Outputs(logits.expand(draws, 4), torch.zeros(draws, dtype=torch.long))
    (v,) = logit_gradients(outputs, Labels.SAMPLED, keys, 0)
    drawn = (logits.softmax(-1) - v).argmax(-1)
    frequencies = torch.bincount(drawn, minlength=4) / draws
    assert (frequencies - logits.softmax(-1)).abs().max() < 0.03
    assert frequencies[3] == 0, "a candidate that is not offered was drawn"


def test_a_label_depends_on_seed_and_key_alone() -> None:
    logits, labels = torch.randn(1, 5).expand(40, 5), torch.zeros(40, dtype=torch.long)
    outputs = Outputs(logits, labels)
    (whole,) = logit_gradients(outputs, Labels.SAMPLED, range(40), 0)
    shuffled = torch.randperm(40).tolist()
    (again,) = logit_gradients(outputs, Labels.SAMPLED, shuffled, 0)
    assert torch.equal(again, whole[shuffled])
    (other,) = logit_gradients(outputs, Labels.SAMPLED, range(40), 1)
    changed = (other != whole).any(-1).double().mean()
    assert 0.3 < changed < 1
    assert len({tuple(row) for row in whole.tolist()}) > 2, "all keys draw the same"


def test_padded_positions_change_no_sampled_label() -> None:
    logits, labels = torch.randn(3, 20, 4), torch.zeros(3, 20, dtype=torch.long)
    (short,) = gradients(logits[:, :5], labels[:, :5], "sampled")
    (long,) = gradients(logits, labels, "sampled")
    assert torch.equal(long[:, :5], short)


@pytest.mark.parametrize("kind", list(Labels))
def test_extra_candidates_change_nothing(kind: str) -> None:
    logits, labels = torch.randn(6, 3), torch.randint(3, (6,))
    padded = torch.cat([logits, torch.full((6, 2), MASKED)], dim=1)
    plain, extended = gradients(logits, labels, kind), gradients(padded, labels, kind)
    assert len(plain) == len(extended)
    for v, w in zip(plain, extended, strict=True):
        torch.testing.assert_close(w[:, :3], v)
        assert not w[:, 3:].any()


@pytest.mark.parametrize(
    ("logits", "labels", "keys", "message"),
    [
        ((2, 3), (2, 3), 2, "labels of shape"),
        ((2, 4, 3), (2, 5), 2, "labels of shape"),
        ((8, 3), (8,), 2, "no scores of 2 examples"),
    ],
)
def test_shapes_are_checked(
    logits: tuple[int, ...], labels: tuple[int, ...], keys: int, message: str
) -> None:
    outputs = Outputs(torch.randn(logits), torch.zeros(labels, dtype=torch.long))
    with pytest.raises(CurvatureError, match=message):
        next(logit_gradients(outputs, Labels.EMPIRICAL, range(keys), 0))


@pytest.mark.parametrize("label", [3, -1])
def test_labels_out_of_range_are_refused(label: int) -> None:
    with pytest.raises(CurvatureError, match=f"label {label} is out of range for 3 classes"):
        gradients(torch.randn(2, 3), torch.tensor([0, label]), "empirical")


# --- default forward and mask ---


def model(logits: Tensor | None) -> Any:
    def call(**inputs: Tensor) -> SimpleNamespace:
        assert "labels" not in inputs or inputs["labels"].ndim > 1
        return SimpleNamespace(logits=logits)

    return call


@pytest.mark.parametrize(
    ("logits", "labels"),
    [(None, (2,)), ((2, 1), (2,)), ((2, 3), (2, 3)), ((2, 4, 3), (2, 5)), ((3, 3), (2,))],
    ids=["no_logits", "regression", "multi_label", "other_length", "other_batch"],
)
def test_forward_checks_shapes(logits: tuple[int, ...] | None, labels: tuple[int, ...]) -> None:
    made = None if logits is None else torch.randn(logits)
    batch = {"labels": torch.zeros(labels, dtype=torch.long)}
    message = "gave no `logits`" if made is None else r"gave logits of shape \["
    if made is not None and made.shape == labels:
        message = r"return labels\.float\(\)"
    with pytest.raises(CurvatureError, match=message):
        default_forward(model(made), batch)


def test_a_bare_tensor_is_told_to_be_no_logits() -> None:
    line = torch.nn.Linear(4, 3)
    line.forward = lambda x: functional.linear(x, line.weight)  # type: ignore[method-assign]
    batch = {"x": torch.ones(2, 4), "labels": torch.zeros(2, dtype=torch.long)}
    with pytest.raises(CurvatureError, match="Linear gave no `logits` for labels of shape"):
        default_forward(line, batch)


@pytest.mark.parametrize(
    "check", [lambda b: default_forward(model(None), b), default_position_mask]
)
def test_missing_labels_are_named(check: Any) -> None:
    with pytest.raises(CurvatureError, match=r"no 'labels' \(it has input_ids\)"):
        check({"input_ids": torch.zeros(2, 3)})


def test_position_mask() -> None:
    labels = torch.zeros(2, dtype=torch.long)
    tokens = torch.tensor([[[1, 1], [1, 0]], [[1, 0], [1, 0]]])
    assert default_position_mask({"labels": labels}).tolist() == [True, True]
    assert default_position_mask({"attention_mask": tokens}).tolist() == tokens.bool().tolist()


class RowsOfLosses(TorchFunctionMode):
    """Records of how many rows cross entropies are."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.cross_entropy:
            self.rows.append(len(args[0]))
        return func(*args, **(kwargs or {}))


def test_a_model_that_is_asked_whether_it_shifts_makes_no_softmax_of_all_positions() -> None:
    config = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8)
    ids = torch.randint(20, (3, 5))
    with RowsOfLosses() as losses:
        outputs = default_forward(GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids})
    assert losses.rows == [0]
    assert outputs.labels[:, :-1].equal(ids[:, 1:])
    assert outputs.labels[:, -1].eq(-100).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_loss_without_the_rows_that_have_no_label_is_the_same(reduction: str) -> None:
    scores, labels = torch.randn(6, 5), torch.tensor([-100, 2, -100, -100, 4, -100])
    expected = functional.cross_entropy(scores, labels, reduction=reduction)
    with _LabelledRows():
        found = functional.cross_entropy(scores, labels, reduction=reduction)
        none = functional.cross_entropy(scores, torch.full((6,), -100))
    torch.testing.assert_close(found, expected)
    assert none.isnan()
