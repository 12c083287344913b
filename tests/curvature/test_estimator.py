"""What must not change a curvature, and what an estimate must leave as it was."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import default_collate

from hf_kfc.curvature import (
    CurvatureArguments,
    KroneckerEigen,
    Operator,
    Outputs,
    estimate_curvature,
)
from hf_kfc.errors import CurvatureError

from .tiny import (
    FACTORED,
    KINDS,
    LABELS,
    SHARINGS,
    Example,
    Logits,
    Mlp,
    Probe,
    assert_equal_matrices,
    bert,
    choices,
    dense,
    estimate,
    examples,
    images,
    oracle,
    pad_choices,
    vectors,
)


def operators(curvature: Any) -> dict[str, Operator]:
    return {block.name: block.operator for block in curvature.blocks}


# --- EKFAC ---


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(sorted(FACTORED)),
    labels=st.sampled_from(LABELS),
    sharing=st.sampled_from(SHARINGS),
    count=st.integers(1, 6),
    seed=st.integers(0, 2**16),
)
def test_ekfac_is_never_farther_from_the_exact_block(
    kind: str, labels: str, sharing: str, count: int, seed: int
) -> None:
    """KFC is diagonal in the same eigenbasis, and EKFAC has the best diagonal there."""
    torch.manual_seed(seed)
    model = Probe(FACTORED[kind].build())
    data = examples([FACTORED[kind].many() for _ in range(count)])
    kfc = estimate(model, data, labels=labels, sharing=sharing)
    ekfac = estimate(model, data, labels=labels, sharing=sharing, curvature="kronecker_eigen")
    exact = oracle(model, data, kfc, labels)["layer"]
    distances = [float((dense(c)["layer"] - exact).norm()) for c in (ekfac, kfc)]
    assert distances[0] <= distances[1] + 1e-10 * float(exact.norm())


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("kind", FACTORED)
def test_ekfac_diagonal_is_that_of_the_rotated_block(kind: str, labels: str) -> None:
    """s = diag(Uᵀ F U) with F the exact block and U the eigenbasis of the factors."""
    model = Probe(FACTORED[kind].build())
    data = examples([FACTORED[kind].many() for _ in range(4)])
    curvature = estimate(model, data, labels=labels, curvature="kronecker_eigen")
    operator = operators(curvature)["layer"]
    assert isinstance(operator, KroneckerEigen)
    exact = oracle(model, data, curvature, labels)["layer"]
    _, p = curvature.blocks[0].shape
    U_A = torch.eye(p) if operator.U_A.ndim == 1 else operator.U_A
    U = torch.kron(operator.U_G, U_A)
    expected = (U.T @ exact @ U).diagonal().reshape(operator.second_moments.shape)
    assert_equal_matrices({"": operator.second_moments}, {"": expected})


@pytest.mark.parametrize("curvature", KINDS)
def test_layer_norm_is_always_diagonal(curvature: str) -> None:
    """Also when it is all there is to estimate: EKFAC then needs no second pass."""
    model, data = Logits(lambda m, x: m.norm(x)[:, :3], norm=nn.LayerNorm(4)), vectors(3)
    estimated = estimate(model, data, curvature=curvature)
    assert operators(estimated)["norm"].kind == "diagonal"
    exact = oracle(model, data, estimated)["norm"].diagonal()
    assert_equal_matrices({"": dense(estimated)["norm"].diagonal()}, {"": exact})


# --- what must not matter ---


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("curvature", KINDS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_batch_size_does_not_matter(attention: str, curvature: str, labels: str) -> None:
    """Also not where batches pad tokens and candidates that single examples do not have."""
    model, data = bert(attention), choices(5)
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
    model, data = bert(attention), choices(3)
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
        seen.extend(p.requires_grad for p in model.parameters())
        assert not model.training
        return Outputs(model(batch["x"]).logits, batch["labels"])

    estimate(model, vectors(2), forward=forward)
    assert seen and not any(seen)


def test_dropout_is_off() -> None:
    """The Fisher is of the model that predicts."""
    net = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3))
    model, data = Logits(lambda m, x: m.net(x), net=net).train(), vectors(4)
    assert_equal_matrices(dense(estimate(model, data)), dense(estimate(model, data)))


# --- who shares inputs ---


@pytest.mark.parametrize("curvature", ["kronecker", "kronecker_eigen"])
def test_query_key_and_value_share_one_input_factor(curvature: str) -> None:
    estimated = operators(estimate(bert(), choices(3), pad_choices(), curvature=curvature))
    name = "A" if curvature == "kronecker" else "U_A"
    factors = {layer: op.state()[name] for layer, op in estimated.items() if name in op.state()}
    attention = "bert.encoder.layer.0.attention"
    shared = factors[f"{attention}.self.query"]
    assert factors[f"{attention}.self.key"] is shared
    assert factors[f"{attention}.self.value"] is shared
    others = [f for layer, f in factors.items() if ".self." not in layer]
    assert not any(other is shared for other in others)
    assert len({id(f) for f in others}) == len(others)


def test_shared_input_factors_are_right() -> None:
    """Each of three layers on one input has the curvature that it has without the others."""
    layers = {name: nn.Linear(4, 3) for name in "abc"}

    def run(m: Logits, x: Tensor) -> Tensor:
        return m.a(x).tanh() * m.b(x) + m.c(x)

    model, data = Logits(run, **layers), vectors(5)
    together = dense(estimate(model, data))
    for name in "abc":
        alone = estimate(model, data, ignore=[f"{other}.*" for other in "abc" if other != name])
        assert_equal_matrices(dense(alone), {name: together[name]})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (nn.Conv2d(2, 3, (1, 3)), nn.Conv2d(2, 3, (3, 1))),
        (nn.Conv2d(2, 3, 2), nn.Conv2d(2, 3, 2, dilation=2)),
        (nn.Conv2d(2, 3, 2), nn.Conv2d(2, 3, 2, stride=2)),
        (nn.Conv2d(2, 3, 2), nn.Conv2d(2, 3, 2, padding=1)),
        (nn.Conv1d(1, 3, 3, bias=False), nn.Conv1d(1, 3, 2)),
        (nn.Embedding(5, 3), nn.Embedding(5, 3, padding_idx=1)),
    ],
    ids=["kernel", "dilation", "stride", "padding", "bias", "padding_idx"],
)
def test_other_settings_read_other_inputs(first: nn.Module, second: nn.Module) -> None:
    """Two layers on one tensor share A only if they cut the same inputs out of it."""

    def pooled(module: nn.Module, x: Tensor) -> Tensor:
        out = module(x)
        return out.mean(1) if isinstance(module, nn.Embedding) else out.flatten(2).mean(-1)

    def run(m: Logits, x: Tensor) -> Tensor:
        return pooled(m.a, x) + pooled(m.b, x)

    model = Logits(run, a=first.double(), b=second.double())
    if isinstance(first, nn.Embedding):
        data = [{**e, "x": torch.randint(5, (6,))} for e in vectors(4)]
    else:
        data = vectors(4, *((1, 6) if isinstance(first, nn.Conv1d) else (2, 5, 5)))
    together = estimate(model, data)
    for name, other in (("a", "b.*"), ("b", "a.*")):
        alone = estimate(model, data, ignore=[other])
        assert_equal_matrices(dense(alone), {name: dense(together)[name]})


# --- refusals ---


def switching(m: Logits, x: Tensor) -> Tensor:
    read = x if len(x) == 2 else x + 1
    return m.a(x) + m.b(read)


def skipping(m: Logits, x: Tensor) -> Tensor:
    return m.a(x) + (m.b(x) if len(x) == 2 else 0)


@pytest.mark.parametrize("run", [switching, skipping])
def test_dynamic_wiring_is_refused(run: Any) -> None:
    model = Logits(run, a=nn.Linear(4, 3), b=nn.Linear(4, 3))
    with pytest.raises(CurvatureError, match=r"b.*wiring depends on its input"):
        estimate(model, vectors(4))


def test_unused_layer_is_refused() -> None:
    model = Logits(lambda m, x: m.used(x), used=nn.Linear(4, 3), idle=nn.Linear(4, 3))
    with pytest.raises(CurvatureError, match="idle"):
        estimate(model, vectors(2))
    curvature = estimate(model, vectors(2), ignore=["idle.*"])
    assert curvature.ignored == ("idle.bias", "idle.weight")


def test_input_modified_in_place_is_refused() -> None:
    def run(m: Logits, x: Tensor) -> Tensor:
        hidden = m.first(x)
        logits = m.second(hidden).detach() + m.first(x)
        hidden.mul_(2)
        return logits

    model = Logits(run, first=nn.Linear(4, 3), second=nn.Linear(3, 3))
    with pytest.raises(CurvatureError, match=r"'second' was modified in place"):
        estimate(model, vectors(2))


def once_for_all(m: Logits, x: Tensor) -> Tensor:
    return m.head(torch.tanh(x + m.embed(torch.arange(x.shape[1])))).sum(1)


def tokens_first(m: Logits, x: Tensor) -> Tensor:
    return m.head(x.transpose(0, 1)).tanh().sum(0)


def examples_mixed(m: Logits, x: Tensor) -> Tensor:
    out = m.head(x).sum(1)
    return out - 0.5 * out.mean(0)


@pytest.mark.parametrize("tokens", [2, 4, 5])
@pytest.mark.parametrize("run", [once_for_all, tokens_first, examples_mixed])
def test_examples_that_cannot_be_told_apart_are_refused(run: Any, tokens: int) -> None:
    """Also where a shape fits by chance: two examples of two or four tokens."""
    embed = {"embed": nn.Embedding(6, 4)} if run is once_for_all else {}
    model = Logits(run, **embed, head=nn.Linear(4, 3))
    data = vectors(4, tokens, 4)
    with pytest.raises(CurvatureError, match=r"not separate for each example"):
        estimate(model, data, curvature_batch_size=2)


def test_one_example_at_a_time_needs_no_telling_apart() -> None:
    model = Logits(once_for_all, embed=nn.Embedding(6, 4), head=nn.Linear(4, 3))
    data = vectors(4, 5, 4)
    curvature = estimate(model, data, curvature="diagonal", curvature_batch_size=1)
    exact = {k: v.diagonal() for k, v in oracle(model, data, curvature).items()}
    assert_equal_matrices({k: v.diagonal() for k, v in dense(curvature).items()}, exact)


def test_empty_data_set_is_refused() -> None:
    with pytest.raises(CurvatureError, match="empty"):
        estimate(Mlp(), [])


def test_nothing_to_estimate_is_refused() -> None:
    with pytest.raises(CurvatureError, match="no trainable parameter"):
        estimate(Mlp().requires_grad_(False), vectors(2))
    with pytest.raises(CurvatureError, match="no trainable parameter"):
        estimate(Mlp(), vectors(2), ignore=["*"])


def test_wrapped_model_is_refused() -> None:
    with pytest.raises(CurvatureError, match="DataParallel"):
        estimate(nn.DataParallel(Mlp()), vectors(2))


def test_mask_of_another_batch_is_refused() -> None:
    with pytest.raises(CurvatureError, match="position mask has 2 rows for a batch of 3"):
        estimate(
            Mlp(),
            vectors(3),
            position_mask=lambda b: torch.ones(2, dtype=torch.bool),
        )


def test_mask_that_fits_no_output_is_refused() -> None:
    model = Logits(lambda m, x: m.layer(x).sum(1), layer=nn.Linear(4, 3))
    data = [{**e, "attention_mask": torch.tensor([1, 0])} for e in vectors(3, 5, 4)]
    with pytest.raises(CurvatureError, match="'layer'"):
        estimate(
            model,
            data,
            forward=lambda m, b: Outputs(m(b["x"]).logits, b["labels"]),
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"curvature": "hessian"}, "unknown curvature 'hessian'"),
        ({"labels": "true"}, "unknown labels 'true'"),
        ({"sharing": "none"}, "unknown sharing 'none'"),
        ({"max_curvature_examples": 0}, "max_curvature_examples is 0"),
        ({"curvature_batch_size": -1}, "curvature_batch_size is -1"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CurvatureError, match=message):
        CurvatureArguments(**arguments)


def test_default_arguments() -> None:
    curvature = estimate_curvature(Mlp(), vectors(2), default_collate)
    assert {block.operator.kind for block in curvature.blocks} == {"kronecker"}
    assert curvature.num_examples == 2


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


def test_refuses_a_model_that_has_diverged() -> None:
    model = Mlp()
    with torch.no_grad():
        next(model.parameters())[0] = float("nan")
    with pytest.raises(CurvatureError, match="Mlp gave logits that are NaN or infinite"):
        estimate(model, vectors(3))
