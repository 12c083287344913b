"""What cannot be estimated is refused, and never estimated wrongly."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tiny.curvatures import assert_equal_matrices, dense, oracle
from tiny.curvatures import estimate as estimate_anything
from tiny.data import labelled, pad
from tiny.layers import CLASSES, Logits, Mlp, vectors
from tiny.models import classifier
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import default_collate

from hf_kfc.curvature import (
    Curvature,
    CurvatureArguments,
    Outputs,
    estimate_curvature,
    identity_curvature,
)
from hf_kfc.errors import CurvatureError, HfKfcError


def estimate(model: nn.Module, data: Any, *rest: Any, **arguments: Any) -> Curvature:
    """Estimate, and refuse what no rule covers."""
    return estimate_anything(model, data, *rest, **{"fallback": "refuse"} | arguments)


def classifier_of_vectors() -> nn.Module:
    return Logits(lambda m, x: m.head(x), head=nn.Linear(4, CLASSES))


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


@pytest.mark.parametrize("tokens", [2, 4, 5])
@pytest.mark.parametrize("run", [once_for_all, tokens_first])
def test_examples_that_cannot_be_told_apart_are_refused(run: Any, tokens: int) -> None:
    """Also where a shape fits by chance: two examples of two or four tokens."""
    embed = {"embed": nn.Embedding(6, 4)} if run is once_for_all else {}
    model = Logits(run, **embed, head=nn.Linear(4, 3))
    data = vectors(4, tokens, 4)
    with pytest.raises(CurvatureError, match="not separate for each"):
        estimate(model, data, curvature_batch_size=2)


class SquaredNorm(nn.Module):
    """Its gradient is 2w·n(x), and not n(x)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.square() * x / x.norm(dim=-1, keepdim=True)


class GatedNorm(nn.RMSNorm):
    """Its gradient depends on an input that no rule reads."""

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        return super().forward(x) if gate is None else super().forward(x) * gate


def functional_head(m: Logits, x: Tensor) -> Tensor:
    return nn.functional.linear(m.layer(x).tanh(), m.layer.weight[:3])


def read_twice(m: Logits, x: Tensor) -> Tensor:
    return m.layer(x)[..., :3] + 0.1 * m.layer.bias.square().sum()


WRONG_GRADIENTS: dict[str, tuple[Any, Any]] = {
    "functional_head": (functional_head, lambda: nn.Linear(4, 4)),
    "read_twice": (read_twice, lambda: nn.Linear(4, 4)),
    "squared_norm": (lambda m, x: m.layer(x)[..., :3], SquaredNorm),
    "gated_norm": (lambda m, x: m.layer(x, x.tanh())[..., :3], lambda: GatedNorm(4)),
}


@pytest.mark.parametrize("curvature", ["diagonal", "kronecker"])
@pytest.mark.parametrize("name", WRONG_GRADIENTS)
def test_a_gradient_that_the_uses_do_not_make_up_is_refused(name: str, curvature: str) -> None:
    run, make = WRONG_GRADIENTS[name]
    model = Logits(run, layer=make())
    with pytest.raises(CurvatureError, match=r"layer.* is not made of the inputs and outputs"):
        estimate(model, vectors(4), curvature=curvature)


def test_a_gradient_of_rounding_errors_is_no_other_gradient() -> None:
    """All keys alike: their gradients cancel, and what is left of the sum is rounding.

    Autograd adds the sums of two calls; the rule sums over the positions of both.
    """
    torch.set_default_dtype(torch.float32)
    attention = {name: nn.Linear(4, 4) for name in ("query", "key", "value")}

    def run(m: Logits, x: Tensor) -> Tensor:
        scores = m.query(x) @ m.key(x).mT + 0.7 * (m.query(x) @ m.key(x.flip(1)).mT).tanh()
        values = m.value(x * torch.linspace(-1, 2, 9)[:, None])
        return (scores.softmax(-1) @ values).sum(1)[..., :3]

    data = [{"x": torch.randn(4).repeat(9, 1), "labels": torch.tensor(1)} for _ in range(3)]
    assert len(estimate(Logits(run, **attention), data).blocks) == 3


@pytest.mark.parametrize("size", [1e-12, 1e-21, 1e-30])
def test_a_tiny_gradient_is_no_other_gradient(size: float) -> None:
    """Its square is 0 in float32."""
    torch.set_default_dtype(torch.float32)
    model = Logits(
        lambda m, x: m.layer(x) * size + m.other(x), layer=nn.Linear(4, 3), other=nn.Linear(4, 3)
    )
    assert len(estimate(model, vectors(3)).blocks) == 2


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


def wrapped() -> dict[str, Any]:
    return {
        "data_parallel": nn.DataParallel,
        "compiled": lambda model: torch.compile(model, backend="eager"),
        "both": lambda model: nn.DataParallel(torch.compile(model, backend="eager")),
        "compiled_in_place": in_place,
    }


def in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


@pytest.mark.parametrize("name", wrapped())
def test_a_wrapped_model_is_unwrapped(name: str) -> None:
    model, data = Mlp(), vectors(4)
    expected = estimate(model, data)
    found = estimate(wrapped()[name](model), data)
    assert found.parameters == expected.parameters
    assert_equal_matrices(dense(found), dense(expected))


def test_a_part_that_is_compiled_on_its_own_is_refused() -> None:
    model = Mlp()
    model.net = torch.compile(model.net, backend="eager")
    with pytest.raises(CurvatureError, match=r"'net' is wrapped by torch\.compile"):
        estimate(model, vectors(2))


NO_FUNCTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "forward": ({"forward": 3}, "forward is a int; give a function"),
    "mask": ({"position_mask": 3}, "position_mask is a int; give a function"),
    "logits": ({"forward": lambda m, b: m(b["x"]).logits}, "returned a Tensor; let it return Outp"),
    "pair": ({"forward": lambda m, b: (m(b["x"]).logits, b["labels"])}, "returned a tuple; let it"),
    "no mask": ({"position_mask": lambda _: None}, "returned None; let it return a tensor"),
    "no masks": ({"position_mask": lambda _: {}}, "returned {}; let it return a tensor"),
    "a number": ({"position_mask": lambda _: torch.tensor(1)}, "let it return a tensor that is T"),
    "checkpoint": ({"checkpoint_dir": 3}, "3 is no folder"),
}


@pytest.mark.parametrize("name", NO_FUNCTIONS)
def test_functions_that_are_none_or_return_something_else(name: str) -> None:
    arguments, said = NO_FUNCTIONS[name]
    with pytest.raises(HfKfcError, match=said):
        estimate_curvature(classifier_of_vectors(), vectors(3), default_collate, **arguments)


@pytest.mark.parametrize("labels", [["a", "b"], torch.tensor(1)])
def test_labels_without_rows_are_refused(labels: Any) -> None:
    def collate(rows: list[Any]) -> dict[str, Any]:
        return default_collate(rows) | {"labels": labels}

    with pytest.raises(CurvatureError, match="are no tensor with a row for each example"):
        estimate_curvature(classifier_of_vectors(), vectors(3), collate)


def test_masks_and_labels_of_other_dtypes() -> None:
    def collate(rows: list[Any]) -> dict[str, Any]:
        batch = default_collate(rows)
        return batch | {"labels": batch["labels"].byte()}

    def mask(batch: Any) -> Tensor:
        return torch.ones(len(batch["x"]))

    model, data = classifier_of_vectors(), vectors(3)
    found = estimate_curvature(model, data, collate, position_mask=mask)
    plain = estimate_curvature(model, data, default_collate)
    assert_equal_matrices(dense(found), dense(plain))


def test_mask_of_another_batch_is_refused() -> None:
    with pytest.raises(CurvatureError, match="position mask has 2 rows for a batch of"):
        estimate(
            Mlp(),
            vectors(3),
            position_mask=lambda b: torch.ones(2, dtype=torch.bool),
        )


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_mask_that_tells_padding_is_refused(batch_size: int) -> None:
    """A would be of padding, which the scores do not depend on."""

    def run(m: Any, x: Tensor) -> Tensor:
        return m.head((m.below(x).tanh() * (x != 0).any(-1, keepdim=True)).sum(1))

    def is_padding(batch: Any) -> Tensor:
        return ~batch["x"].any(-1)

    model = Logits(run, below=nn.Linear(4, 4), head=nn.Linear(4, CLASSES))
    data = [{"x": torch.randn(5, 4), "labels": torch.tensor(0)} for _ in range(4)]
    for row in data:
        row["x"][3:] = 0
    with pytest.raises(CurvatureError, match="depend on no position that counts"):
        estimate(model, data, position_mask=is_padding, curvature_batch_size=batch_size)


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
        ({"curvature_batch_size": 2.5}, "curvature_batch_size is 2.5; give a whole number"),
        ({"max_curvature_examples": float("nan")}, "max_curvature_examples is nan"),
        ({"min_token_examples": "3"}, "min_token_examples is 3"),
        ({"ignore": "head"}, "ignore is 'head'; give a list of patterns"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(CurvatureError, match=message):
        CurvatureArguments(**arguments)


def test_refuses_a_model_that_has_diverged() -> None:
    model = Mlp()
    with torch.no_grad():
        next(model.parameters())[0] = float("nan")
    with pytest.raises(CurvatureError, match="Mlp gave logits that are NaN or infinite"):
        estimate(model, vectors(3))


def of_batch_statistics() -> nn.Module:
    norm = nn.BatchNorm1d(4, track_running_stats=False)
    return Logits(lambda m, x: m.head(m.norm(x).tanh()), norm=norm, head=nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("make", "data", "problem"),
    [
        (of_batch_statistics, lambda: vectors(3), r"x \[1, 4\].*more than 1 value per channel"),
        (Mlp, lambda: vectors(3, 5), r"Mlp cannot read x \[2, 5\], labels \[2\] in evaluation"),
    ],
)
def test_what_a_model_cannot_read_is_told(make: Any, data: Any, problem: str) -> None:
    with pytest.raises(CurvatureError, match=problem):
        estimate(make(), data())


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: nn.LazyLinear(3), r"'weight' has no values.*run the model once"),
        (lambda: Mlp().to("meta"), r"has no values.*load the whole of it"),
        (lambda: torch.jit.script(nn.Linear(4, 3)), r"torch\.jit; give the model that it was made"),
    ],
)
def test_a_model_without_values_or_code_is_refused(make: Any, problem: str) -> None:
    with pytest.raises(CurvatureError, match=problem):
        estimate(make(), vectors(2))


@pytest.mark.parametrize(("label", "classes"), [(-1, 3), (7, 3)])
def test_labels_that_are_no_class_are_refused_with_a_hint(label: int, classes: int) -> None:
    """As where a data set marks what has no label by another number than -100."""
    data = [row | {"labels": torch.tensor(label)} for row in labelled(2)]
    hint = rf"label {label} is none of {classes} classes.*from 0 to {classes - 1}, and put -100"
    with pytest.raises(CurvatureError, match=hint):
        estimate_curvature(classifier(classes), data, pad)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_model_that_checkpoints_its_activations_is_refused(reentrant: bool) -> None:
    """Computed anew for the gradients, layers are not what was recorded of them."""

    def run(m: Logits, x: Tensor) -> Tensor:
        inner = nn.Sequential(m.a, nn.Tanh(), m.b)
        return m.head(checkpoint(inner, m.below(x), use_reentrant=reentrant))

    layers = {name: nn.Linear(4, 4) for name in ("below", "a", "b")}
    with pytest.raises(CurvatureError, match="Logits checkpoints activations"):
        estimate(Logits(run, **layers, head=nn.Linear(4, 3)), vectors(3))


def test_complex_parameters_are_refused() -> None:
    """Of the square of a complex gradient the real part is no curvature."""
    model = Logits(lambda m, x: m.head(m.layer(x + 0j).abs()), head=nn.Linear(4, 3))
    model.layer = nn.Linear(4, 4, dtype=torch.complex128)
    for make in (identity_curvature, lambda m: estimate(m, vectors(3))):
        with pytest.raises(CurvatureError, match=r"'layer.weight' is complex.*view_as_complex"):
            make(model)
    assert list(estimate(model, vectors(3), ignore=["layer"]).parameters) == [
        "head.weight",
        "head.bias",
    ]


def test_autocast_around_an_estimate_changes_nothing() -> None:
    model = classifier()
    expected = estimate_curvature(model, labelled(), pad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same_tensors(estimate_curvature(model, labelled(), pad), expected)


@pytest.fixture
def bf16_accelerator() -> Iterator[Accelerator]:
    """One of its own: its settings hold for a process until they are reset."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(mixed_precision="bf16", cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_nor_does_autocast_that_training_has_put_into_the_model(bf16_accelerator) -> None:
    torch.set_default_dtype(torch.float32)
    model = classifier()
    expected = estimate_curvature(model, labelled(), pad)
    prepared = bf16_accelerator.prepare(model)
    forward = prepared.forward
    assert_same_tensors(estimate_curvature(prepared, labelled(), pad), expected)
    assert prepared.forward is forward


def test_inference_mode_around_an_estimate_changes_nothing() -> None:
    model = classifier()
    expected = estimate_curvature(model, labelled(), pad)
    with torch.inference_mode():
        assert_same_tensors(estimate_curvature(model, labelled(), pad), expected)


def assert_same_tensors(found: Curvature, expected: Curvature) -> None:
    for one, other in zip(expected.blocks, found.blocks, strict=True):
        for name, tensor in one.operator.state().items():
            assert torch.equal(tensor, other.operator.state()[name]), (one.name, name)
