"""Priors: one with every kind of operator, and random ones of any model."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from hf_kfc.curvature import (
    Block,
    Curvature,
    Diagonal,
    Identity,
    Kronecker,
    KroneckerEigen,
    KroneckerStack,
    KroneckerSum,
    Layout,
    LowRankKronecker,
    LowRankKroneckerStack,
    LowRankKroneckerSum,
    Operator,
    find_layers,
)
from hf_kfc.priors import ConsolidationPrior, Provenance

Tensors = dict[str, Tensor]
KINDS = ("identity", "diagonal", "kronecker", "kronecker_eigen")

PROVENANCE = Provenance(
    "old",
    base_model="org/model",
    base_revision="abc123",
    num_examples=70,
    curvature="kronecker",
    labels="exact",
    sharing="expand",
    anchor_metrics={"accuracy": 0.1 + 0.2},
)


class Experts(nn.Module):
    """Some linear layers in one tensor."""

    def __init__(self, experts: int, inputs: int, outputs: int, transposed: bool) -> None:
        super().__init__()
        shape = (inputs, outputs) if transposed else (outputs, inputs)
        self.weight = nn.Parameter(torch.randn(experts, *shape))
        self.bias = nn.Parameter(torch.randn(experts, outputs))


class Model(nn.Module):
    """Every kind of layer that has a curvature of its own, and two that stay where they are."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.query = nn.Linear(4, 3)
        self.key = nn.Linear(4, 3)
        self.places = nn.Embedding(6, 4)
        self.kinds = nn.Embedding(2, 4)
        self.convolution = nn.Conv1d(2, 3, 2, bias=False)
        self.norm = nn.LayerNorm(4)
        self.scale = nn.Parameter(torch.randn(()))
        self.old = nn.Linear(4, 3)
        self.small = nn.Linear(4, 3)
        self.smalls = nn.Linear(4, 3)
        self.groups = nn.Conv1d(4, 6, 2, groups=2)
        self.experts = Experts(3, 4, 2, transposed=False)
        self.transposed = Experts(2, 2, 3, transposed=True)
        self.head = nn.Linear(3, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def model(seed: int = 0) -> Model:
    """Make the model; equal for equal seeds."""
    torch.manual_seed(seed)
    return Model()


def _moment(size: int) -> Tensor:
    rows = torch.randn(size + 2, size)
    return rows.T @ rows / len(rows)


def _moments(size: int) -> Tensor:
    return torch.stack([_moment(size), _moment(size)])


def _low_rank(p: int, q: int) -> LowRankKronecker:
    return LowRankKronecker(torch.randn(p, 2), torch.rand(p), torch.randn(q, 1), torch.rand(q))


def _low_rank_sum(p: int, q: int) -> LowRankKroneckerSum:
    U, V = torch.randn(2, p, 2), torch.randn(2, q, 1)
    return LowRankKroneckerSum(U, torch.rand(2, p), V, torch.rand(2, q))


def _stack(n: int, p: int, q: int) -> KroneckerStack:
    A, G = (torch.stack([_moments(size) for _ in range(n)]) for size in (p, q))
    return KroneckerStack(A, G)


def _low_rank_stack(n: int, p: int, q: int) -> LowRankKroneckerStack:
    return LowRankKroneckerStack.of([_low_rank_sum(p, q) for _ in range(n)])


def _basis(size: int) -> Tensor:
    return torch.linalg.qr(torch.randn(size, size)).Q


def operators() -> dict[str, tuple[Layout, Operator]]:
    """Make an operator for every covered module of the model; the attention shares A."""
    shared = _moment(5)
    return {
        "words": (Layout.IN_OUT, Kronecker(torch.rand(5), _moment(4))),
        "query": (Layout.OUT_IN, Kronecker(shared, _moment(3))),
        "key": (Layout.OUT_IN, Kronecker(shared, _moment(3))),
        "places": (Layout.IN_OUT, KroneckerEigen(torch.empty(0), _basis(4), torch.rand(4, 6))),
        "kinds": (Layout.IN_OUT, KroneckerEigen(torch.empty(0), _basis(4), torch.rand(4, 2))),
        "convolution": (Layout.OUT_IN, KroneckerEigen(_basis(4), _basis(3), torch.rand(3, 4))),
        "norm": (Layout.ELEMENTWISE, Diagonal(torch.rand(4, 2))),
        "scale": (Layout.ELEMENTWISE, Identity(torch.tensor(0.7))),
        "old": (Layout.OUT_IN, KroneckerSum(_moments(5), _moments(3))),
        "small": (Layout.OUT_IN, _low_rank(5, 3).to(dtype=torch.bfloat16)),
        "smalls": (Layout.OUT_IN, _low_rank_sum(5, 3)),
        "groups": (Layout.OUT_IN, _stack(2, 5, 3)),
        "experts": (Layout.STACK_OUT_IN, _low_rank_stack(3, 5, 2)),
        "transposed": (Layout.STACK_IN_OUT, _stack(2, 3, 3)),
    }


def prior(seed: int = 0) -> ConsolidationPrior:
    """Make a prior of the model that ignores its head; equal for equal seeds."""
    source = model(seed)
    anchor = {
        name: value.detach().clone()
        for name, value in source.named_parameters()
        if not name.startswith(("head", "frozen"))
    }
    blocks = []
    for name, (layout, operator) in operators().items():
        shapes = {n: tuple(v.shape) for n, v in anchor.items() if n.split(".")[0] == name}
        blocks.append(Block(name, layout, shapes, operator))
    curvature = Curvature(tuple(blocks), num_examples=64, ignored=("head.bias", "head.weight"))
    return ConsolidationPrior(anchor, curvature, PROVENANCE)


def one_block(block: Block, anchor: dict[str, Tensor]) -> ConsolidationPrior:
    """Make a prior of a single block."""
    return ConsolidationPrior(anchor, Curvature((block,), 1), Provenance("old"))


def assert_equal_priors(actual: ConsolidationPrior, expected: ConsolidationPrior) -> None:
    """Compare bit by bit, without the fingerprint."""
    assert_equal_tensors(actual.anchor, expected.anchor)
    assert actual.provenance == expected.provenance
    assert actual.curvature.num_examples == expected.curvature.num_examples
    assert actual.curvature.ignored == expected.curvature.ignored
    assert len(actual.curvature.blocks) == len(expected.curvature.blocks)
    for a, e in zip(actual.curvature.blocks, expected.curvature.blocks, strict=True):
        assert (a.name, a.layout, a.shapes) == (e.name, e.layout, e.shapes)
        assert list(a.shapes) == list(e.shapes)
        assert type(a.operator) is type(e.operator)
        assert_equal_tensors(a.operator.state(), e.operator.state())


def assert_equal_tensors(actual: Tensors, expected: Tensors) -> None:
    """Compare bit by bit; also types and shapes."""
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        assert torch.equal(actual[name], value), name


def make_operator(kind: str, shape: tuple[int, int], diagonal_a: bool, seed: int) -> Operator:
    """A random positive definite operator in float64."""
    generator = torch.Generator().manual_seed(seed)
    q, p = shape

    def rand(*size: int) -> Tensor:
        return torch.rand(size, generator=generator, dtype=torch.float64)

    def spd(n: int) -> Tensor:
        root = torch.randn(n, n, generator=generator, dtype=torch.float64)
        return root @ root.T / n

    if kind == "identity":
        return Identity(rand() + 0.5)
    if kind == "kronecker":
        return Kronecker(rand(p) if diagonal_a else spd(p), spd(q))
    if kind == "kronecker_eigen":
        u_a = torch.empty(0) if diagonal_a else torch.linalg.eigh(spd(p))[1]
        return KroneckerEigen(u_a, torch.linalg.eigh(spd(q))[1], rand(q, p))
    return Diagonal(rand(q, p))


def make_prior(
    model: nn.Module,
    kind: str = "kronecker",
    *,
    task: str = "old",
    seed: int = 0,
    ignore: Sequence[str] = (),
    num_examples: int = 30,
    distance: float = 0.1,
) -> ConsolidationPrior:
    """A prior with random operators and an anchor a random step away from the model.

    Args:
        model: The model to be trained.
        kind: Of the operators; "mixed" gives each layer another one.
        task: The old task.
        seed: Of operators and anchor.
        ignore: Parameters left free.
        num_examples: N_old.
        distance: Standard deviation of the step.
    """
    layers, ignored = find_layers(model, ignore)
    blocks = []
    for index, layer in enumerate(layers):
        wanted = KINDS[(index + seed) % len(KINDS)] if kind == "mixed" else kind
        if not layer.rule.has_factors and wanted.startswith("kronecker"):
            wanted = "diagonal"
        operator = make_operator(
            wanted, layer.shape, layer.rule.diagonal_inputs, 100 * seed + index
        )
        blocks.append(layer.block(operator))
    parameters = dict(model.named_parameters())
    generator = torch.Generator().manual_seed(seed)
    anchor = {
        name: parameters[name].detach().float() + distance * torch.randn(shape, generator=generator)
        for block in blocks
        for name, shape in block.shapes.items()
    }
    curvature = Curvature(tuple(blocks), num_examples, tuple(ignored))
    return ConsolidationPrior(anchor, curvature, Provenance(task, num_examples=num_examples))


def prior_of(model: nn.Module, distance: float = 0.1) -> ConsolidationPrior:
    """A prior F = I, its anchor a step away from the model in every parameter."""
    prior = ConsolidationPrior.l2(model, task="old")
    prior.provenance = replace(prior.provenance, num_examples=16)
    prior.anchor = {name: value - distance for name, value in prior.anchor.items()}
    return prior
