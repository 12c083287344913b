"""Kronecker factors as other libraries compute them, and an exact reference, of the same layers.

Each ``*_factors`` returns a function that computes the factors of all linear layers over the same
batches; what can be prepared once is prepared outside of it. No library is asked for more than the
factors (no eigendecomposition, no inverse, no file), and none computes gradients that it does not
need. ``normalised`` brings them to one scale: A is a mean over positions, whose last diagonal
entry, that of the bias, is 1; G is a sum over positions, a mean over examples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, default_collate
from workload import Batch, Example, inputs_of

from hf_kfc import CurvatureArguments, estimate_curvature

Factors = dict[str, tuple[Tensor, Tensor]]
"""A and G by the name of the layer."""

IGNORE = ["Embedding", "LayerNorm"]


def our_factors(
    model: nn.Module, examples: Sequence[Example], batch_size: int, products: str
) -> Callable[[], Factors]:
    """hf_kfc, from the examples on: collating and looking at the model's wiring are included."""
    arguments = CurvatureArguments(
        ignore=IGNORE, curvature_batch_size=batch_size, products=products
    )

    def fit() -> Factors:
        curvature = estimate_curvature(model, examples, default_collate, arguments)
        return {b.name: (b.operator.A, b.operator.G) for b in curvature.blocks}

    return fit


def kronfluence_factors(
    model: nn.Module, batches: Sequence[Batch], dtype: torch.dtype | None = None
) -> Callable[[], Factors]:
    """kronfluence's covariances, in float32 or in a narrower dtype throughout (its own options)."""
    from kronfluence.analyzer import prepare_model  # noqa: PLC0415
    from kronfluence.arguments import FactorArguments  # noqa: PLC0415
    from kronfluence.factor.covariance import (  # noqa: PLC0415
        fit_covariance_matrices_with_loader,
    )
    from kronfluence.task import Task  # noqa: PLC0415
    from kronfluence.utils.state import State  # noqa: PLC0415

    class Ranking(Task):
        def compute_train_loss(self, batch: Batch, model: nn.Module, sample: bool = False) -> Any:
            logits = model(**inputs_of(batch)).logits.float()
            return functional.cross_entropy(logits, batch["labels"], reduction="sum")

        def compute_measurement(self, batch: Batch, model: nn.Module) -> Any:
            return self.compute_train_loss(batch, model)

        def get_attention_mask(self, batch: Batch) -> Tensor:
            return batch["attention_mask"]

    task = Ranking()
    tracked = prepare_model(deepcopy(model), task)
    covariance = torch.float32 if dtype is None else dtype
    arguments = FactorArguments(
        use_empirical_fisher=True,
        amp_dtype=dtype,
        activation_covariance_dtype=covariance,
        gradient_covariance_dtype=covariance,
    )
    state = State(cpu=batches[0]["labels"].device.type == "cpu")

    def fit() -> Factors:
        _, found = fit_covariance_matrices_with_loader(
            tracked, state, task, batches, arguments, disable_tqdm=True
        )
        inputs, outputs = found["activation_covariance"], found["gradient_covariance"]
        return {name: (inputs[name], outputs[name]) for name in inputs}

    return fit


def curvlinops_factors(model: nn.Module, batches: Sequence[Batch]) -> Callable[[], Factors]:
    """curvlinops' factors, KFAC-expand; the bias is joined to the weight, as in the others."""
    from curvlinops import FisherType, KFACLinearOperator, KFACType  # noqa: PLC0415

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ranker = deepcopy(model)

        def forward(self, batch: Batch) -> Tensor:
            return self.ranker(**batch).logits

    function = Logits()
    parameters = [p for layer in _linear(function).values() for p in layer.parameters()]
    data = [(inputs_of(batch), batch["labels"]) for batch in batches]
    options: dict[str, Any] = {
        "check_deterministic": False,
        "fisher_type": FisherType.EMPIRICAL,
        "kfac_approx": KFACType.EXPAND,
        "num_per_example_loss_terms": 1,
        "separate_weight_and_bias": False,
        "num_data": sum(len(labels) for _, labels in data),
        "batch_size_fn": lambda batch: len(batch["input_ids"]),
    }

    def fit() -> Factors:
        loss = nn.CrossEntropyLoss(reduction="sum")
        operator = KFACLinearOperator(function, loss, parameters, data, **options)
        operator.compute_kronecker_factors()
        inputs, outputs = operator._input_covariances, operator._gradient_covariances
        return {name.removeprefix("ranker."): (inputs[name], outputs[name]) for name in inputs}

    return fit


def nngeometry_factors(model: nn.Module, batches: Sequence[Batch]) -> Callable[[], Factors]:
    """nngeometry's factors, with positions as examples: its linear layers take matrices only.

    It wants an input that has a gradient, so the word embeddings are looked up beforehand.
    """
    from nngeometry.backend import TorchHooksJacobianBackend  # noqa: PLC0415
    from nngeometry.layercollection import LayerCollection  # noqa: PLC0415
    from nngeometry.object.pspace import PMatKFAC  # noqa: PLC0415

    class Flat(nn.Module):
        def __init__(self, linear: nn.Linear) -> None:
            super().__init__()
            self.linear = linear

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(0, -2)).unflatten(0, x.shape[:-1])

    ranker = deepcopy(model).requires_grad_(False)
    for name, layer in _linear(ranker).items():
        ranker.set_submodule(name, Flat(layer))
    collection = LayerCollection()
    for layer in _linear(ranker).values():
        collection.add_layer_from_model(ranker, layer)
    words = ranker.get_input_embeddings()
    data = [(words(b["input_ids"]), b["attention_mask"], b["labels"]) for b in batches]

    def log_likelihood(embedded: Tensor, mask: Tensor, labels: Tensor) -> Tensor:
        logits = ranker(inputs_embeds=embedded, attention_mask=mask).logits.float()
        return -functional.cross_entropy(logits, labels, reduction="none")[:, None]

    def fit() -> Factors:
        backend = TorchHooksJacobianBackend(ranker, log_likelihood, layer_collection=collection)
        found = PMatKFAC(backend, examples=DataLoader(data, batch_size=None)).data
        return {name.removesuffix(".linear"): pair for name, pair in found.items()}

    return fit


def reference_factors(
    model: nn.Module, batches: Sequence[Batch], *, count_padding: bool
) -> Factors:
    """Compute the factors in float64 by plain hooks, without any of the libraries.

    Args:
        model: In evaluation mode.
        batches: Of examples.
        count_padding: Whether padded positions count in A, as they do in libraries that do not
            know the mask. G is the same either way: nothing reads what they put out.
    """
    exact = deepcopy(model).double()
    layers = _linear(exact)
    A = {name: torch.zeros(()).double() for name in layers}
    G = dict(A)
    mask = torch.zeros(0)

    def watch(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            a = inputs[0].detach().flatten(0, -2)
            a = torch.cat([a, torch.ones_like(a[:, :1])], dim=1)
            if len(a) == len(mask) and not count_padding:
                a = a[mask]
            A[name] = a.T @ a + A[name].to(a.device)
            output.register_hook(lambda g: add_gradient(name, g.flatten(0, -2)))

        return hook

    def add_gradient(name: str, g: Tensor) -> None:
        G[name] = g.T @ g + G[name].to(g.device)

    for name, layer in layers.items():
        layer.register_forward_hook(watch(name))
    for batch in batches:
        mask = batch["attention_mask"].bool().flatten()
        logits = exact(**inputs_of(batch)).logits
        loss = functional.cross_entropy(logits, batch["labels"], reduction="sum")
        torch.autograd.grad(loss, [layer.weight for layer in layers.values()])
    return {name: (A[name], G[name]) for name in layers}


def normalised(factors: Factors, examples: float) -> Factors:
    """Bring factors to the scale of ``expand``.

    Args:
        factors: As a library gives them.
        examples: What its G is to be divided by: the number of examples where it is their sum.
    """
    return {
        name: (A.double() / A[-1, -1].double(), G.double() / examples)
        for name, (A, G) in factors.items()
    }


def largest_error(found: Factors, exact: Factors) -> tuple[float, float]:
    """Return the largest relative Frobenius error of any layer's A, and of any layer's G."""
    if found.keys() != exact.keys():
        raise ValueError(f"layers differ: {sorted(found.keys() ^ exact.keys())}")

    def error(one: Tensor, other: Tensor) -> float:
        other = other.to(one.device)
        return float((one - other).norm() / other.norm())

    pairs = [(found[name], exact[name]) for name in exact]
    return (
        max(error(own[0], other[0]) for own, other in pairs),
        max(error(own[1], other[1]) for own, other in pairs),
    )


def _linear(model: nn.Module) -> Mapping[str, nn.Linear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
