"""What must not change a curvature, and what an estimate must leave as it was."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny.curvatures import (
    KINDS,
    LABELS,
    SHARINGS,
    assert_equal_matrices,
    dense,
    estimate,
    images,
    operators,
    oracle,
)
from tiny.data import choices, pad_choices
from tiny.layers import Example, Logits, Mlp, vectors
from tiny.models import bert
from torch import Tensor, nn
from torch.utils.data import default_collate

from hf_kfc.curvature import Outputs, estimate_curvature


def test_default_arguments() -> None:
    curvature = estimate_curvature(Mlp(), vectors(2), default_collate)
    assert {block.operator.kind for block in curvature.blocks} == {"kronecker"}
    assert curvature.num_examples == 2


# --- what must not matter ---


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("curvature", KINDS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_batch_size_does_not_matter(attention: str, curvature: str, labels: str) -> None:
    """Also not where batches pad tokens and candidates that single examples do not have."""
    model, data = bert(attn_implementation=attention), choices(5)
    reference, *others = (
        images(
            estimate(
                model,
                data,
                pad_choices(),
                curvature=curvature,
                labels=labels,
                curvature_batch_size=size,
            )
        )
        for size in (1, 3, 5)
    )
    for other in others:
        assert_equal_matrices(other, reference, rtol=1e-9)


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_does_not_matter(attention: str, sharing: str) -> None:
    model, data = bert(attn_implementation=attention), choices(3)
    for curvature in ("kronecker", "diagonal"):
        plain, padded = (
            images(estimate(model, data, pad_choices(*extra), curvature=curvature, sharing=sharing))
            for extra in ((0, 0), (3, 2))
        )
        assert_equal_matrices(padded, plain, rtol=1e-9)


def test_bert_diagonal_is_exact() -> None:
    """A whole transformer with shared position embeddings, padded batches against single ones."""
    model, data = bert(), choices(4)
    curvature = estimate(model, data, pad_choices(), curvature="diagonal")
    exact = oracle(model, data, curvature, collator=pad_choices())
    diagonals = {k: v.diagonal() for k, v in dense(curvature).items()}
    assert_equal_matrices(diagonals, {k: v.diagonal() for k, v in exact.items()})


def test_order_of_examples_does_not_matter_to_sampled_labels() -> None:
    """The key of an example is its index, so a part has the labels that the whole has."""
    model, data = Mlp(), vectors(12)
    arguments = {"labels": "sampled", "curvature_seed": 3}
    whole = estimate(model, data, max_curvature_examples=5, **arguments)
    rows = oracle_rows(model, data, seed=3)
    chosen = torch.randperm(12, generator=torch.Generator().manual_seed(3))[:5]
    G = operators(whole)["net.2"].state()["G"]
    logits_gradients = rows["net.2.bias"][chosen]
    torch.testing.assert_close(G, logits_gradients.T @ logits_gradients / 5)


def oracle_rows(model: nn.Module, data: list[Example], seed: int) -> dict[str, Tensor]:
    from hf_kfc.curvature import per_example_gradients  # noqa: PLC0415

    return per_example_gradients(model, data, default_collate, "sampled", seed=seed)


def test_seed_changes_sampled_labels_only() -> None:
    model, data = Mlp(), vectors(8)
    for labels, same in (("sampled", False), ("empirical", True), ("exact", True)):
        first, second = (
            images(estimate(model, data, labels=labels, curvature_seed=seed))["net.2"]
            for seed in (0, 1)
        )
        assert torch.equal(first, second) == same


def test_autocast_is_accumulated_in_float32() -> None:
    """bfloat16 passes cost a few per cent; sums of 200 examples in bfloat16 would cost more."""
    torch.set_default_dtype(torch.float32)
    model, data = Mlp(), [{**e, "x": e["x"].float()} for e in vectors(200)]
    for curvature in ("kronecker", "diagonal"):
        full = dense(estimate(model, data, curvature=curvature, curvature_batch_size=1))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = estimate(model, data, curvature=curvature, curvature_batch_size=1)
        for operator in operators(half).values():
            assert {t.dtype for t in operator.state().values()} == {torch.float32}
        for name, matrix in dense(half).items():
            assert (matrix - full[name]).norm() < 0.03 * full[name].norm()


def test_half_precision_model_has_float32_curvature() -> None:
    torch.set_default_dtype(torch.float32)
    model = Mlp().bfloat16()
    data = [{**e, "x": e["x"].bfloat16()} for e in vectors(50)]
    exact = Mlp()
    exact.load_state_dict(model.state_dict())
    wide = [{**e, "x": e["x"].float()} for e in data]
    for curvature in KINDS:
        half = estimate(model, data, curvature=curvature)
        full = dense(estimate(exact, wide, curvature=curvature))
        for operator in operators(half).values():
            assert {t.dtype for t in operator.state().values()} == {torch.float32}
        for name, matrix in dense(half).items():
            assert (matrix - full[name]).norm() < 0.05 * full[name].norm()


# --- which examples ---


class Recorder:
    """A data set that remembers which of its examples were read."""

    def __init__(self, data: list[Example]) -> None:
        self.data = data
        self.read: set[int] = set()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Example:
        self.read.add(index)
        return self.data[index]


def test_part_of_the_examples_is_random_and_seeded() -> None:
    model, data = Mlp(), vectors(40)
    chosen = []
    for seed in (0, 0, 1):
        recorder = Recorder(data)
        curvature = estimate(model, recorder, max_curvature_examples=10, curvature_seed=seed)
        assert curvature.num_examples == len(recorder.read) == 10
        chosen.append(recorder.read)
    assert chosen[0] == chosen[1] != chosen[2]
    assert chosen[0] != set(range(10))
    whole = estimate(model, data, max_curvature_examples=100)
    assert whole.num_examples == 40


def test_part_is_divided_by_its_own_size() -> None:
    model, data = Mlp(), vectors(1) * 20
    part = estimate(model, data, max_curvature_examples=3)
    assert_equal_matrices(dense(part), dense(estimate(model, data)))


# --- what must be left as it was ---


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture
def half_frozen() -> Iterator[nn.Module]:
    model = bert()
    model.bert.embeddings.requires_grad_(False)
    model.train()
    model.dropout.eval()
    before = ({n: p.requires_grad for n, p in model.named_parameters()}, modes(model))
    yield model
    assert ({n: p.requires_grad for n, p in model.named_parameters()}, modes(model)) == before
    assert all(p.grad is None for p in model.parameters())
    assert hooks(model) == 0


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


@pytest.mark.parametrize("curvature", KINDS)
def test_model_is_left_as_it_was(half_frozen: nn.Module, curvature: str) -> None:
    estimated = estimate(half_frozen, choices(3), pad_choices(), curvature=curvature)
    assert not any("embeddings" in name for name in estimated.parameters)


def test_model_is_left_as_it_was_after_an_error(half_frozen: nn.Module) -> None:
    def interrupted(model: nn.Module, batch: Any) -> Outputs:
        outputs = model(**{k: v for k, v in batch.items() if k not in ("candidate_mask", "labels")})
        if torch.is_grad_enabled():
            raise KeyboardInterrupt
        return Outputs(outputs.logits, batch["labels"])

    with pytest.raises(KeyboardInterrupt):
        estimate(half_frozen, choices(3), pad_choices(), forward=interrupted)


def test_weights_have_no_gradient_while_it_runs() -> None:
    model = Mlp()
    seen = []

    def forward(model: nn.Module, batch: Any) -> Outputs:
        seen.append({p.requires_grad for p in model.parameters()})
        assert not model.training
        return Outputs(model(batch["x"]).logits, batch["labels"])

    estimate(model, vectors(2), forward=forward)
    assert seen[0] == {True}, "the gradients of the first batch are checked"
    assert seen[-1] == {False}
    assert all(p.grad is None for p in model.parameters())


def test_dropout_is_off() -> None:
    """The Fisher is of the model that predicts."""
    net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3))
    model, data = Logits(lambda m, x: m.net(x), net=net).train(), vectors(4)
    assert_equal_matrices(dense(estimate(model, data)), dense(estimate(model, data)))


# --- decisions at every token ---


@pytest.mark.parametrize("labels", LABELS)
def test_token_classification(labels: str) -> None:
    """[N, T, K] logits with label −100: the diagonal is exact, and so is a head that is alone."""
    rows = torch.tensor([[0, 2, -100], [1, -100, -100], [-100, 2, 1]])
    data = [{"x": torch.randn(3, 4), "labels": row} for row in rows]
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    model = Logits(lambda m, x: m.net(x), net=net)
    curvature = estimate(model, data, labels=labels, curvature="diagonal")
    exact = {k: v.diagonal() for k, v in oracle(model, data, curvature, labels).items()}
    assert_equal_matrices({k: v.diagonal() for k, v in dense(curvature).items()}, exact)


@pytest.mark.parametrize("labels", LABELS)
def test_undecided_tokens_add_no_gradient(labels: str) -> None:
    """One decision per example: expand's G is that of the decided token alone."""
    data = [{"x": torch.randn(1, 4).repeat(3, 1), "labels": torch.tensor([-100, 2, -100])}]
    model = Logits(lambda m, x: m.head(x), head=nn.Linear(4, 3))
    curvature = estimate(model, data, labels=labels)
    assert_equal_matrices(dense(curvature), oracle(model, data, curvature, labels))
