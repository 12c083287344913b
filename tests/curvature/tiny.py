"""Models of a few dozen parameters, data for them, and the comparisons the tests share."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate
from transformers import BertConfig, BertForMultipleChoice
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.pytorch_utils import Conv1D

from hf_kfc.curvature import (
    Curvature,
    CurvatureArguments,
    Operator,
    Outputs,
    default_forward,
    default_position_mask,
    estimate_curvature,
    exact_block_fisher,
    per_example_gradients,
)

LABELS = ("empirical", "sampled", "exact")
SHARINGS = ("expand", "reduce", "average")
KINDS = ("diagonal", "kronecker", "kronecker_eigen")
CLASSES = 3
POSITIONS = 4

Example = dict[str, Tensor]
Collator = Callable[[list[Example]], dict[str, Tensor]]


@dataclass(frozen=True)
class Kind:
    """A layer kind: how to build one with 3 outputs, and inputs of one example for it.

    ``one`` gives a single position, ``same`` the same input at several positions, ``many``
    different inputs at several positions.
    """

    build: Callable[[], nn.Module]
    one: Callable[[], Tensor]
    same: Callable[[], Tensor]
    many: Callable[[], Tensor]


def _linear(build: Callable[[], nn.Module]) -> Kind:
    return Kind(
        build,
        one=lambda: torch.randn(1, 4),
        same=lambda: torch.randn(1, 4).repeat(POSITIONS, 1),
        many=lambda: torch.randn(POSITIONS, 4),
    )


def _conv(build: Callable[[], nn.Module], one: tuple[int, ...], many: tuple[int, ...]) -> Kind:
    return Kind(
        build,
        one=lambda: torch.randn(2, *one),
        same=lambda: torch.randn(2, *(1 for _ in many)).expand(2, *many).clone(),
        many=lambda: torch.randn(2, *many),
    )


def _embedding(build: Callable[[], nn.Module]) -> Kind:
    return Kind(
        build,
        one=lambda: torch.randint(1, 5, (1,)),
        same=lambda: torch.randint(1, 5, (1,)).repeat(POSITIONS),
        many=lambda: torch.tensor([2, 4, 2, 1]),
    )


def _circular1(**settings: Any) -> Callable[[], nn.Module]:
    """A constant signal stays constant under circular padding, so all its patches are the same."""
    return lambda: nn.Conv1d(2, 3, 3, padding_mode="circular", **settings)


FACTORED: dict[str, Kind] = {
    "linear": _linear(lambda: nn.Linear(4, 3)),
    "linear_no_bias": _linear(lambda: nn.Linear(4, 3, bias=False)),
    "gpt2_conv1d": _linear(lambda: Conv1D(3, 4)),
    "conv1d": _conv(lambda: nn.Conv1d(2, 3, 3), (3,), (6,)),
    "conv1d_no_bias": _conv(lambda: nn.Conv1d(2, 3, 3, bias=False), (3,), (5,)),
    "conv1d_strided_dilated": _conv(lambda: nn.Conv1d(2, 3, 2, stride=2, dilation=2), (3,), (8,)),
    "conv1d_padded": _conv(_circular1(padding=1), (1,), (4,)),
    "conv2d": _conv(lambda: nn.Conv2d(2, 3, (2, 3)), (2, 3), (3, 4)),
    "conv2d_strided_dilated_padded": _conv(
        lambda: nn.Conv2d(
            2, 3, (2, 3), stride=(1, 2), dilation=(2, 1), padding=(1, 1), padding_mode="circular"
        ),
        (1, 1),
        (2, 4),
    ),
    "embedding": _embedding(lambda: nn.Embedding(5, 3)),
    "embedding_padding_idx": _embedding(lambda: nn.Embedding(5, 3, padding_idx=0)),
}
"""Layer kinds with Kronecker factors."""

NORMALISED: dict[str, Kind] = {
    "layer_norm": Kind(
        lambda: _jittered(nn.LayerNorm(3)),
        one=lambda: torch.randn(1, 3),
        same=lambda: torch.randn(1, 3).repeat(POSITIONS, 1),
        many=lambda: torch.randn(POSITIONS, 3),
    ),
    "layer_norm_no_bias": Kind(
        lambda: _jittered(nn.LayerNorm(3, bias=False)),
        one=lambda: torch.randn(1, 3),
        same=lambda: torch.randn(1, 3).repeat(POSITIONS, 1),
        many=lambda: torch.randn(POSITIONS, 3),
    ),
    "rms_norm": Kind(
        lambda: _jittered(nn.RMSNorm(3)),
        one=lambda: torch.randn(1, 3),
        same=lambda: torch.randn(1, 3).repeat(POSITIONS, 1),
        many=lambda: torch.randn(POSITIONS, 3),
    ),
    "rms_norm_2d": Kind(
        lambda: _jittered(nn.RMSNorm((2, 3))),
        one=lambda: torch.randn(1, 2, 3),
        same=lambda: torch.randn(1, 2, 3).repeat(POSITIONS, 1, 1),
        many=lambda: torch.randn(POSITIONS, 2, 3),
    ),
    "layer_norm_2d": Kind(
        lambda: _jittered(nn.LayerNorm((2, 3))),
        one=lambda: torch.randn(1, 2, 3),
        same=lambda: torch.randn(1, 2, 3).repeat(POSITIONS, 1, 1),
        many=lambda: torch.randn(POSITIONS, 2, 3),
    ),
}
EVERY = FACTORED | NORMALISED


def _jittered(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))
    return module


class Probe(nn.Module):
    """One layer, read at its positions with given weights; nothing else is trainable.

    The logits are nonlinear in the layer's output, and every example has a context, so that
    examples with the same input still have different gradients.

    Args:
        layer: The layer.
        weights: How much each position counts in the pooled output; None for the mean.
    """

    def __init__(self, layer: nn.Module, weights: Tensor | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.weights = weights
        self.register_buffer("mix", torch.randn(6, CLASSES))

    def forward(self, x: Tensor, context: Tensor) -> SequenceClassifierOutput:
        out = self.layer(x)
        if isinstance(self.layer, nn.Conv1d | nn.Conv2d):
            out = out.flatten(2).mT
        out = out.flatten(2)  # [N, R, q]
        weights = torch.ones(out.shape[1]) / out.shape[1] if self.weights is None else self.weights
        pooled = torch.einsum("r,nrq->nq", weights, out)
        hidden = torch.tanh(pooled) * context[:, : pooled.shape[1]]
        return SequenceClassifierOutput(logits=hidden @ self.mix[: pooled.shape[1]])


def examples(inputs: Sequence[Tensor]) -> list[Example]:
    """Give every input a random context and label."""
    return [
        {"x": x, "context": torch.randn(6), "labels": torch.randint(CLASSES, ())} for x in inputs
    ]


class Mlp(nn.Module):
    """Two layers and an in-place activation on ``x`` [N, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, CLASSES))

    def forward(self, x: Tensor) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.net(x))


class Logits(nn.Module):
    """Any function of a module and the batch's ``x`` as a classifier."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.run(self, x))


def vectors(count: int, *shape: int) -> list[Example]:
    """Random inputs ``x`` with labels."""
    shape = shape or (4,)
    return [{"x": torch.randn(*shape), "labels": torch.randint(CLASSES, ())} for _ in range(count)]


def offered_forward(model: nn.Module, batch: Mapping[str, Tensor]) -> Outputs:
    """Run a model on a batch; candidates that are not offered have no share of the softmax."""
    inputs = dict(batch)
    offered = inputs.pop("candidate_mask", None)
    outputs = default_forward(model, inputs)
    if offered is None:
        return outputs
    least = torch.finfo(outputs.logits.dtype).min
    return outputs._replace(logits=outputs.logits.masked_fill(~offered, least))


def offered_positions(batch: Mapping[str, Tensor]) -> Tensor:
    """The attended tokens of candidates that are offered."""
    mask = default_position_mask(batch)
    return mask & batch["candidate_mask"][..., None] if "candidate_mask" in batch else mask


def estimate(
    model: nn.Module, data: Any, collator: Any = default_collate, **arguments: Any
) -> Curvature:
    """Estimate a curvature, with the arguments given by name."""
    hooks = {"forward": offered_forward, "position_mask": offered_positions}
    hooks |= {k: arguments.pop(k) for k in tuple(hooks) if k in arguments}
    return estimate_curvature(model, data, collator, CurvatureArguments(**arguments), **hooks)


def operators(curvature: Curvature) -> dict[str, Operator]:
    """The operator of each block, by name."""
    return {block.name: block.operator for block in curvature.blocks}


def dense(curvature: Curvature) -> dict[str, Tensor]:
    """The operators as matrices, by block name."""
    return {b.name: b.operator.matrix(*b.shape) for b in curvature.blocks}


def oracle(
    model: nn.Module,
    data: Any,
    curvature: Curvature,
    labels: str = "empirical",
    collator: Any = default_collate,
) -> dict[str, Tensor]:
    """The exact Fisher of the same blocks."""
    return exact_block_fisher(
        per_example_gradients(model, data, collator, labels, forward=offered_forward),
        len(data),
        curvature,
    )


def assert_equal_matrices(
    actual: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-10
) -> None:
    """Compare block by block, relative to the largest entry of the block.

    Below 1e-25 is zero: the gradients of a key sum to zero over positions, up to rounding.
    """
    assert actual.keys() == expected.keys()
    for name, matrix in expected.items():
        scale = float(matrix.abs().max())
        assert scale > 0, f"{name} is zero: the test would prove nothing"
        torch.testing.assert_close(actual[name], matrix, rtol=0, atol=rtol * scale + 1e-25)


def images(curvature: Curvature) -> dict[str, Tensor]:
    """What the operators make of fixed displacements: equal if and only if they are equal."""

    def image(operator: Operator, shape: tuple[int, int]) -> Tensor:
        dtype = next(iter(operator.state().values())).dtype
        delta = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)
        return operator.apply(delta)

    return {b.name: image(b.operator, b.shape) for b in curvature.blocks}


def bert(attention: str = "eager", **settings: Any) -> BertForMultipleChoice:
    """A tiny BERT for multiple choice, in the default dtype."""
    config = BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=16,
        attn_implementation=attention,
        initializer_range=0.5,
        **settings,
    )
    return BertForMultipleChoice(config).to(torch.get_default_dtype())


class OtherLinear(nn.Linear):
    """It computes something else than its parent, whose rule does not fit it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.tanh())


def bert_without_a_rule() -> BertForMultipleChoice:
    """A tiny BERT with a pooler that no rule covers."""
    model = bert()
    model.bert.pooler.dense.__class__ = OtherLinear
    return model


def choices(count: int, candidates: Sequence[int] = (2, 3, 4)) -> list[dict[str, Any]]:
    """Multiple-choice examples of mixed numbers of candidates and mixed lengths."""
    made = []
    for index in range(count):
        c = candidates[index % len(candidates)]
        lengths = torch.randint(2, 7, (c,)).tolist()
        made.append(
            {
                "ids": [torch.randint(1, 20, (length,)) for length in lengths],
                "label": int(torch.randint(c, ())),
            }
        )
    return made


def pad_choices(extra_tokens: int = 0, extra_candidates: int = 0) -> Callable[..., dict[str, Any]]:
    """Make a collator that pads to the longest example, and further if asked to."""

    def collate(batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        c = max(len(e["ids"]) for e in batch) + extra_candidates
        t = max(len(ids) for e in batch for ids in e["ids"]) + extra_tokens
        made = {
            "input_ids": torch.zeros(len(batch), c, t, dtype=torch.long),
            "attention_mask": torch.zeros(len(batch), c, t, dtype=torch.long),
            "candidate_mask": torch.zeros(len(batch), c, dtype=torch.bool),
            "labels": torch.tensor([e["label"] for e in batch]),
        }
        made["attention_mask"][..., 0] = 1  # attention over nothing is NaN
        for row, example in enumerate(batch):
            for column, ids in enumerate(example["ids"]):
                made["input_ids"][row, column, : len(ids)] = ids
                made["attention_mask"][row, column, : len(ids)] = 1
                made["candidate_mask"][row, column] = True
        return made

    return collate
