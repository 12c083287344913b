"""Three computations of seconds that show what the curvatures are, and what goes wrong without.

Figures 1 and 2 of McInerney et al. 2021 (arXiv:2111.06012) on generated tasks, and what becomes of
a penalty made of the Hessian. All in float64 and from fixed seeds; results are JSON values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import floor, log10
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import default_collate
from transformers.modeling_outputs import SequenceClassifierOutput

from ..curvature import (
    Block,
    Curvature,
    CurvatureArguments,
    Diagonal,
    Kronecker,
    Operator,
    default_forward,
    estimate_curvature,
    exact_block_fisher,
    hessian_diagonal,
    per_example_gradients,
)
from ..files import refuse_foreign
from ..ranking import CnnConfig, CnnForMultipleChoice
from .figures import require_matplotlib
from .results import RESULTS_NAME, command, versions
from .toy_figures import save_cnn_fisher_figure, save_hessian_figure, save_two_parameter_figure

__all__ = ["ToyArguments", "cnn_fisher", "hessian_lesson", "run_toys", "two_parameters"]

Example = dict[str, Tensor]

_EXAMPLES = 400  # of either task of two_parameters
_GRID = 61
_VOCABULARY, _TOKENS, _CLASSES = 12, 6, 5
_STEPS, _RECORD_EVERY = 750, 15
_STRENGTHS = (0.5, 2.0, 8.0)  # N_old / (2 N_new) of tasks of one size, and multiples of it


@dataclass
class ToyArguments:
    """Where the toy results go."""

    output_dir: str = field(
        default="runs/toys", metadata={"help": "Folder for the numbers and the pictures."}
    )


def run_toys(arguments: ToyArguments) -> None:
    """Compute the three toys, and write ``results.json`` and a PNG and an SVG of each.

    Args:
        arguments: Where to.

    Raises:
        HfKfcError: matplotlib is missing, or the folder holds something else.
    """
    require_matplotlib()
    output = Path(arguments.output_dir)
    refuse_foreign(output, RESULTS_NAME)
    results = {
        "two_parameters": two_parameters(),
        "cnn_fisher": cnn_fisher(),
        "hessian_lesson": hessian_lesson(),
    }
    output.mkdir(parents=True, exist_ok=True)
    text = _json_text(results | {"command": command(), "versions": versions()})
    (output / RESULTS_NAME).write_text(text, encoding="utf-8")
    for suffix in ("png", "svg"):
        save_two_parameter_figure(results["two_parameters"], output / f"two_parameters.{suffix}")
        save_cnn_fisher_figure(results["cnn_fisher"], output / f"cnn_fisher.{suffix}")
        save_hessian_figure(results["hessian_lesson"], output / f"hessian_lesson.{suffix}")
    print(f"saved in {output}")  # noqa: T201


def two_parameters(seed: int = 0) -> dict[str, Any]:
    """Learn a new task next to an old one with two parameters, under each curvature (Figure 1).

    One linear unit without bias on two correlated inputs, logistic loss. The mean square of its
    output's gradient, p(1 − p), falls as the output grows, so that the Kronecker product is near
    the exact Fisher but not equal to it; the diagonal knows nothing of the inputs' correlation.
    Labels of the Fisher are ``exact``: for this model it is then the Hessian of the old loss.

    Args:
        seed: Of the two tasks.

    Returns:
        ``anchor``, the matrices and relative errors under ``fisher`` and ``errors``, the
        ``strength`` λ = N_old / (2 N_new), the ``end_points`` of new loss + λ ΔᵀFΔ with both
        losses there, and both losses on a ``grid``.
    """
    generator = torch.Generator().manual_seed(seed)
    data = _logistic_task([0.7, 0.0], 0.95, generator)
    new = default_collate(_logistic_task([-2.0, 0.0], 0.0, generator))
    old = default_collate(data)
    model = _LogisticUnit()
    _minimise(model, lambda: _loss(model, old))
    anchor = _copy(model)
    at_anchor = _where(model, old, new)

    block, operators = _two_parameter_operators(model, data)
    matrices = {name: operator.matrix(1, 2) for name, operator in operators.items()}
    strength = len(old["labels"]) / (2 * len(new["labels"]))
    ends = {"none": _end_point(model, old, new)}
    for name, operator in operators.items():
        prior = Curvature((replace(block, operator=operator),), len(data))
        ends[name] = _end_point(model, old, new, prior, anchor, strength)
    return {
        "num_old": len(old["labels"]),
        "num_new": len(new["labels"]),
        "strength": strength,
        "anchor": at_anchor,
        "fisher": {name: matrix.tolist() for name, matrix in matrices.items()},
        "errors": {n: _error(matrices[n], matrices["full"]) for n in ("kronecker", "diagonal")},
        "end_points": ends,
        "grid": _loss_grid(old, new, [own["parameters"] for own in (at_anchor, *ends.values())]),
    }


def cnn_fisher(width: int = 10) -> dict[str, Any]:
    """Hold the approximations against the exact Fisher of toy CNNs of one width (Figure 2).

    The layers are those of :class:`~hf_kfc.ranking.CnnForMultipleChoice`, on tokens that each
    count for or against a class. As a text classifier its two linear layers are used once per
    example, and there the factors fall short only by their independence; the convolution, used at
    many positions, has correlations between positions that no two factors hold. As a ranker the
    linear layers are used once per candidate: the gradients at the scores of one example's
    candidates sum to zero, so what the candidates' inputs have in common cancels. ``expand``
    knows nothing of that, and is far worse than the diagonal there.

    Args:
        width: Of all layers.

    Returns:
        By model: its accuracy and loss, and the relative Frobenius ``errors`` of each kind of
        curvature by block. Under ``pictures``, parts of some blocks: the exact matrix and the
        Kronecker product, and the diagonal as a vector.
    """
    classifier, texts = _TextCnn(width), _texts()
    config = CnnConfig(
        vocab_size=_VOCABULARY, hidden_size=width, dropout=0.0, initializer_range=0.5
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        ranker = CnnForMultipleChoice(config).double()
    models: dict[str, Any] = {}
    pictures = []
    for name, model, data, drawn in (
        ("text_classifier", classifier, texts, {"dense": 4, "convolution": 2}),
        ("ranker", ranker, _candidate_lists(), {"dense": 4}),
    ):
        batch = default_collate(data)
        _train(model, batch, steps=40)
        exact, estimates = _curvatures(model, data)
        models[name] = _quality(model, batch) | {
            "num_examples": len(data),
            "errors": {
                block: {
                    kind: _error(_matrix(own, block), matrix) for kind, own in estimates.items()
                }
                for block, matrix in exact.items()
            },
        }
        pictures += [
            {"model": name, "block": block}
            | _part(exact[block], _matrix(estimates["kronecker"], block), width, outputs)
            for block, outputs in drawn.items()
        ]
    return {"width": width, "models": models, "pictures": pictures}


def hessian_lesson(seed: int = 0) -> dict[str, Any]:
    """Learn a new task against a penalty made of the Hessian's diagonal, and of the Fisher's.

    A classifier with two hidden GELU layers learns an old task, not to the end, and then a new one
    in another part of its input space, by gradient descent on new loss + λ ΔᵀFΔ. A third penalty,
    the Hessian with its negative entries set to 0, shows that these alone are at fault. With the
    Hessian there is no minimum at any λ: along one parameter the loss grows no faster than the
    distance, and the penalty falls with its square. λ decides how soon that wrecks training.

    Args:
        seed: Of the classifier's first parameters.

    Returns:
        ``hessian`` and ``fisher``: size, share of negative entries and extremes of each diagonal;
        ``refusal``: why the library makes no prior of the Hessian; ``runs``: for each penalty and
        λ its value and both tasks' losses and accuracies by step.
    """
    data = _curved_task(0.0, 0.0, seed=0)
    old, new = (default_collate(own) for own in (data, _curved_task(3.0, 2.0, seed=1)))
    model = _Classifier(seed)
    _train(model, old, steps=20, learning_rate=0.02)
    anchor = _copy(model)
    at_anchor = {"old": _quality(model, old), "new": _quality(model, new)}

    args = CurvatureArguments(curvature="diagonal")
    fisher = estimate_curvature(model, data, default_collate, args)
    hessian = _diagonal_curvature(fisher, hessian_diagonal(model, data, default_collate))
    clamped = _diagonal_curvature(
        fisher, {n: h.clamp(min=0) for n, h in _diagonals(hessian).items()}
    )
    runs = [_learn(model, anchor, old, new, "none", fisher, 0.0)]
    for strength in _STRENGTHS:
        for name, own in (("fisher", fisher), ("hessian", hessian), ("clamped", clamped)):
            runs.append(_learn(model, anchor, old, new, name, own, strength))
    return {
        "bayesian_strength": len(old["labels"]) / (2 * len(new["labels"])),
        "at_anchor": at_anchor,
        "hessian": _extremes(hessian),
        "fisher": _extremes(fisher),
        "refusal": [
            f"{block.name}: {phrase}"
            for block in hessian.blocks
            for phrase in block.operator.mismatch(block.shape)
        ],
        "runs": runs,
    }


class _LogisticUnit(nn.Module):
    """One linear unit; its two logits are 0 and z, so that the softmax is the logistic function."""

    def __init__(self) -> None:
        super().__init__()
        self.unit = nn.Linear(2, 1, bias=False, dtype=torch.float64)
        nn.init.zeros_(self.unit.weight)

    def forward(self, x: Tensor) -> SequenceClassifierOutput:
        z = self.unit(x)
        return SequenceClassifierOutput(logits=torch.cat([torch.zeros_like(z), z], dim=-1))


class _TextCnn(nn.Module):
    """The layers of the ranking CNN with one score per class."""

    def __init__(self, width: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.embeddings = nn.Embedding(_VOCABULARY, width)
            self.convolution = nn.Conv1d(width, width, 3, padding=1)
            self.dense = nn.Linear(width, width)
            self.classifier = nn.Linear(width, _CLASSES)
        self.double()

    def forward(self, input_ids: Tensor) -> SequenceClassifierOutput:
        features = torch.relu(self.convolution(self.embeddings(input_ids).mT)).amax(-1)
        return SequenceClassifierOutput(logits=self.classifier(torch.relu(self.dense(features))))


class _Classifier(nn.Module):
    """Two inputs, two hidden layers, two classes."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.first = nn.Linear(2, 8)
            self.second = nn.Linear(8, 8)
            self.output = nn.Linear(8, 2)
        self.double()

    def forward(self, x: Tensor) -> SequenceClassifierOutput:
        hidden = functional.gelu(self.second(functional.gelu(self.first(x))))
        return SequenceClassifierOutput(logits=self.output(hidden))


def _logistic_task(
    weight: list[float], correlation: float, generator: torch.Generator
) -> list[Example]:
    """Draw inputs of unit variance and this correlation, and labels of a logistic unit."""
    covariance = torch.tensor([[1.0, correlation], [correlation, 1.0]], dtype=torch.float64)
    x = torch.randn(_EXAMPLES, 2, generator=generator, dtype=torch.float64)
    x = x @ torch.linalg.cholesky(covariance).T
    p = torch.sigmoid(x @ torch.tensor(weight, dtype=torch.float64))
    labels = torch.rand(_EXAMPLES, generator=generator, dtype=torch.float64) < p
    return [{"x": a, "labels": y} for a, y in zip(x, labels.long(), strict=True)]


def _texts() -> list[Example]:
    """Draw texts whose class is the one that most of their tokens speak for."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, _VOCABULARY, (200, _TOKENS), generator=generator)
    votes = torch.randn(_VOCABULARY, _CLASSES, generator=generator)
    labels = votes[ids].sum(1).argmax(-1)
    return [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]


def _candidate_lists() -> list[Example]:
    """Draw lists of candidates of which the one with the best tokens is right."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, _VOCABULARY, (200, 4, _TOKENS), generator=generator)
    labels = torch.randn(_VOCABULARY, generator=generator)[ids].sum(-1).argmax(-1)
    return [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]


def _curved_task(centre: float, phase: float, seed: int) -> list[Example]:
    """Draw inputs around a centre, in two classes on either side of a sine."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    labels = (x[:, 1] > torch.sin(2 * x[:, 0] + phase)).long()
    x = x + torch.tensor([centre, 0.0], dtype=torch.float64)
    return [{"x": a, "labels": y} for a, y in zip(x, labels, strict=True)]


def _loss(model: nn.Module, batch: Example) -> Tensor:
    outputs = default_forward(model, batch)
    return functional.cross_entropy(outputs.logits, outputs.labels)


@torch.no_grad()
def _quality(model: nn.Module, batch: Example) -> dict[str, float]:
    logits, labels = default_forward(model, batch)
    return {
        "loss": functional.cross_entropy(logits, labels).item(),
        "accuracy": (logits.argmax(-1) == labels).double().mean().item(),
    }


def _minimise(model: nn.Module, objective: Callable[[], Tensor]) -> None:
    """Go to the minimum of a smooth convex function of a few parameters."""
    optimizer = torch.optim.LBFGS(
        model.parameters(),
        max_iter=200,
        tolerance_grad=1e-10,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]


def _train(model: nn.Module, batch: Example, steps: int, learning_rate: float = 0.01) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        _loss(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    model.eval()


def _two_parameter_operators(
    model: _LogisticUnit, data: list[Example]
) -> tuple[Block, dict[str, Operator]]:
    """Give the model's block, and its exact Fisher and both approximations by name."""
    (factored,), (diagonal,) = (
        estimate_curvature(
            model, data, default_collate, CurvatureArguments(curvature=kind, labels="exact")
        ).blocks
        for kind in ("kronecker", "diagonal")
    )
    gradients = per_example_gradients(model, data, default_collate, "exact")
    full = exact_block_fisher(gradients, len(data), Curvature((factored,), len(data)))["unit"]
    return factored, {
        # With one output every matrix is a Kronecker product: its own A, with G = 1.
        "full": Kronecker(full, full.new_ones(1, 1)),
        "kronecker": factored.operator,
        "diagonal": diagonal.operator,
    }


def _end_point(
    model: _LogisticUnit,
    old: Example,
    new: Example,
    prior: Curvature | None = None,
    anchor: Mapping[str, Tensor] | None = None,
    strength: float = 0.0,
) -> dict[str, Any]:
    """Minimise new loss + λ ΔᵀFΔ, and say where that is."""

    def objective() -> Tensor:
        loss = _loss(model, new)
        if prior is None or anchor is None:
            return loss
        return loss + strength * prior.quadratic(_displacement(model, anchor))

    _minimise(model, objective)
    return _where(model, old, new)


def _where(model: _LogisticUnit, old: Example, new: Example) -> dict[str, Any]:
    return {
        "parameters": model.unit.weight[0].tolist(),
        "old_loss": _quality(model, old)["loss"],
        "new_loss": _quality(model, new)["loss"],
    }


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def _displacement(model: nn.Module, anchor: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: p - anchor[name] for name, p in model.named_parameters()}


@torch.no_grad()
def _loss_grid(old: Example, new: Example, points: list[list[float]]) -> dict[str, Any]:
    """Evaluate both losses on a grid around some points; rows are the second parameter."""
    ends = torch.tensor(points, dtype=torch.float64)
    low, high = ends.amin(0) - 1.5, ends.amax(0) + 1.5
    first, second = (
        torch.linspace(float(a), float(b), _GRID) for a, b in zip(low, high, strict=True)
    )
    losses = []
    for batch in (old, new):
        signs = 2 * batch["labels"].double() - 1  # −log p(y|x) = log(1 + exp(−z)), z times its sign
        weights = torch.cartesian_prod(second, first).flip(1).double()
        margins = (weights @ batch["x"].T) * signs
        losses.append(functional.softplus(-margins).mean(1).reshape(_GRID, _GRID))
    axes = {"first": _rounded(first), "second": _rounded(second)}
    return axes | {"old_loss": _rounded(losses[0]), "new_loss": _rounded(losses[1])}


def _curvatures(
    model: nn.Module, data: list[Example]
) -> tuple[dict[str, Tensor], dict[str, Curvature]]:
    """Give the exact Fisher of every block, and each approximation of it."""
    kinds = {
        "diagonal": CurvatureArguments(curvature="diagonal"),
        "kronecker": CurvatureArguments(curvature="kronecker"),
        "kronecker_reduce": CurvatureArguments(curvature="kronecker", sharing="reduce"),
        "kronecker_eigen": CurvatureArguments(curvature="kronecker_eigen"),
    }
    estimates = {
        name: estimate_curvature(model, data, default_collate, args) for name, args in kinds.items()
    }
    gradients = per_example_gradients(model, data, default_collate)
    return exact_block_fisher(gradients, len(data), estimates["diagonal"]), estimates


def _matrix(curvature: Curvature, name: str) -> Tensor:
    (block,) = [own for own in curvature.blocks if own.name == name]
    return block.operator.matrix(*block.shape)


def _part(exact: Tensor, kronecker: Tensor, width: int, outputs: int) -> dict[str, Any]:
    """Cut out the outputs with most curvature: a whole block has too many entries to be seen."""
    inputs = len(exact) // width
    by_output = exact.diagonal().reshape(width, inputs)
    chosen = by_output.sum(1).topk(outputs).indices.sort().values
    rows = (chosen[:, None] * inputs + torch.arange(inputs)).reshape(-1)
    return {
        "outputs": outputs,
        "exact": _rounded(exact[rows][:, rows]),
        "kronecker": _rounded(kronecker[rows][:, rows]),
        "diagonal": _rounded(exact.diagonal()[rows]),
    }


def _diagonal_curvature(like: Curvature, diagonals: Mapping[str, Tensor]) -> Curvature:
    """Put other diagonals in the place of a curvature's operators."""
    blocks = [replace(b, operator=Diagonal(b.join(diagonals))) for b in like.blocks]
    return replace(like, blocks=tuple(blocks))


def _diagonals(curvature: Curvature) -> dict[str, Tensor]:
    return {
        name: part
        for block in curvature.blocks
        for name, part in block.split(block.operator.state()["diagonal"]).items()
    }


def _extremes(curvature: Curvature) -> dict[str, float]:
    entries = torch.cat([d.reshape(-1) for d in _diagonals(curvature).values()])
    return {
        "entries": len(entries),
        "negative_share": (entries < 0).double().mean().item(),
        "lowest": entries.min().item(),
        "highest": entries.max().item(),
    }


def _learn(
    model: nn.Module,
    anchor: Mapping[str, Tensor],
    old: Example,
    new: Example,
    penalty_name: str,
    curvature: Curvature,
    strength: float,
) -> dict[str, Any]:
    """Learn the new task from the anchor by plain gradient descent, and record what happens."""
    model.load_state_dict(dict(anchor))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    curves: dict[str, list[float]] = {
        key: []
        for key in ("step", "penalty", "old_loss", "old_accuracy", "new_loss", "new_accuracy")
    }
    for step in range(_STEPS + 1):
        penalty = strength * curvature.quadratic(_displacement(model, anchor))
        if step % _RECORD_EVERY == 0:
            row = {"step": step, "penalty": penalty.item()}
            for task, batch in (("old", old), ("new", new)):
                row |= {f"{task}_{key}": v for key, v in _quality(model, batch).items()}
            for key, value in row.items():
                curves[key].append(float(f"{value:.4g}"))
        optimizer.zero_grad()
        (_loss(model, new) + penalty).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {"penalty_of": penalty_name, "strength": strength, "curves": curves}


def _error(matrix: Tensor, exact: Tensor) -> float:
    return float((matrix - exact).norm() / exact.norm())


def _rounded(tensor: Tensor, digits: int = 4) -> Any:
    """Return nested lists, to this many digits of the largest entry."""
    largest = float(tensor.abs().max()) or 1.0
    decimals = digits - 1 - floor(log10(largest))
    if tensor.ndim > 1:
        return [[round(v, decimals) for v in row] for row in tensor.tolist()]
    return [round(v, decimals) for v in tensor.tolist()]


def _json_text(values: Mapping[str, Any]) -> str:
    """Write JSON with a list of numbers on one line."""
    text = json.dumps(values, indent=1, ensure_ascii=False)
    numbers = re.compile(r"\[([-+.,\deE\s]*)\]")
    return numbers.sub(lambda own: f"[{' '.join(own[1].split())}]", text) + "\n"
