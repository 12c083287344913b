"""How well a prior predicts what a displacement costs its task."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, Self, cast

import torch
from torch import Tensor

from hf_kfc.priors import ConsolidationPrior

from .data import Examples, TaskData
from .tiers import Learned

__all__ = [
    "PREDICTION_NAME",
    "Increase",
    "Prediction",
    "measure_prediction",
    "save_prediction_figure",
]

PREDICTION_NAME = "prediction.json"
_SIZES = (0.1, 0.3, 1.0)
_DIRECTIONS = 2
_MAX_EXAMPLES = 256


@dataclass(frozen=True)
class Increase:
    """What displacements of one size do to the mean loss.

    Args:
        size: Standard deviation of the noise, relative to the root mean square of each tensor.
        predicted: ½ ΔᵀFΔ, without damping.
        training: The loss on training examples, displaced, less that at the anchor.
        test: The same on test examples.
    """

    size: float
    predicted: float
    training: float
    test: float


@dataclass(frozen=True)
class Prediction:
    """Predicted and measured increase of a task's mean loss, for growing displacements.

    Args:
        num_examples: Examples that the losses are means over, of either kind.
        num_directions: Random directions of each size.
        increases: One for each size, means over the directions.
    """

    num_examples: int
    num_directions: int
    increases: Sequence[Increase]

    def table(self) -> str:
        """Return it as a Markdown table."""
        lines = ["| size of Δ | predicted ½ΔᵀFΔ | on training examples | on test examples |"]
        lines.append("|---:|---:|---:|---:|")
        for own in self.increases:
            values = (own.predicted, own.training, own.test)
            lines.append(f"| {own.size:g} | {' | '.join(f'{value:.3g}' for value in values)} |")
        return "\n".join(lines)

    def report(self, picture: str) -> str:
        """Return what a card says of it, as Markdown.

        Args:
            picture: Name of the picture beside the card.
        """
        return (
            f"Increase of the task's mean loss where every tensor is displaced by noise, of a size "
            f"relative to its root mean square: as this prior predicts it (without damping), and "
            f"as measured on at most {self.num_examples} examples that the model was trained on, "
            f"and on as many that it was not. Means over {self.num_directions} directions, there "
            f"and back.\n\n{self.table()}\n\n"
            f"![predicted and measured increase of the loss]({picture})\n\n"
            "The curvature is that of the loss on the training examples. Where a model knows those "
            "much better than others, its loss on the others grows less."
        )

    def save(self, directory: Path) -> None:
        """Write ``prediction.json``.

        Args:
            directory: An existing folder.
        """
        text = json.dumps(asdict(self), indent=2) + "\n"
        (directory / PREDICTION_NAME).write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read what :meth:`save` wrote.

        Args:
            directory: The folder.
        """
        values = json.loads((directory / PREDICTION_NAME).read_text(encoding="utf-8"))
        return cls(**values | {"increases": [Increase(**own) for own in values["increases"]]})


def measure_prediction(
    prior: ConsolidationPrior, learned: Learned, task: TaskData, seed: int = 0
) -> Prediction:
    """Displace a model from its anchor at random and look at its task's loss.

    Each direction is taken there and back, so that the slope that the loss may still have at the
    anchor does not count. Every process must call it.

    Args:
        prior: Of the model's last task.
        learned: The model at the anchor; it is left as it is.
        task: That task.
        seed: Of the directions.
    """
    splits = task.train[:_MAX_EXAMPLES], task.test[:_MAX_EXAMPLES]
    anchored = [_loss(learned, examples) for examples in splits]
    generator = torch.Generator().manual_seed(seed)
    directions = [_direction(prior, learned, generator) for _ in range(_DIRECTIONS)]
    increases = []
    for size in _SIZES:
        deltas = [{name: size * own for name, own in d.items()} for d in directions]
        predicted = [0.5 * float(prior.curvature.quadratic(delta)) for delta in deltas]
        measured: list[list[float]] = [[], []]
        for delta, sign in product(deltas, (1, -1)):
            with _moved(learned, delta, sign):
                for own, examples, before in zip(measured, splits, anchored, strict=True):
                    own.append(_loss(learned, examples) - before)
        increases.append(Increase(size, fmean(predicted), *map(fmean, measured)))
    return Prediction(max(map(len, splits)), _DIRECTIONS, increases)


def save_prediction_figure(prediction: Prediction, path: Path) -> None:
    """Draw what displacements of growing size cost, as the prior predicts and as measured.

    Args:
        prediction: The measurement.
        path: A PNG or SVG file.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    sizes = [own.size for own in prediction.increases]
    lines = {
        "predicted, ½ΔᵀFΔ": ("o--", "#2f6fb2", [own.predicted for own in prediction.increases]),
        "on training examples": ("o-", "#c0392b", [own.training for own in prediction.increases]),
        "on test examples": ("o-", "#9a9a9a", [own.test for own in prediction.increases]),
    }
    for label, (style, colour, values) in lines.items():
        axes.plot(sizes, values, style, color=colour, label=label)
    smallest = min((abs(v) for _, _, values in lines.values() for v in values if v), default=1.0)
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=smallest)  # measured ones may be below zero
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.minorticks_off()
    axes.set_xlabel("size of the displacement, relative to the parameters")
    axes.set_ylabel("increase of the mean loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def _direction(
    prior: ConsolidationPrior, learned: Learned, generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw noise for what the prior covers, as large in each tensor as its values are."""
    parameters = dict(learned.model.named_parameters())
    delta: dict[str, Tensor] = {}
    for block in prior.curvature.blocks:
        noise = {}
        for name, shape in block.shapes.items():
            scale = parameters[name].detach().square().mean().sqrt()
            drawn = torch.randn(shape, generator=generator)  # on the CPU, alike everywhere
            noise[name] = drawn.to(_device(prior)) * scale.to(_device(prior))
        delta |= block.split(block.join(block.covered(noise)))
    return delta


@contextmanager
def _moved(learned: Learned, delta: Mapping[str, Tensor], sign: int) -> Iterator[None]:
    parameters = dict(learned.model.named_parameters())
    before = {name: parameters[name].detach().clone() for name in delta}
    try:
        with torch.no_grad():
            for name, own in delta.items():
                parameters[name].add_(own.to(parameters[name]), alpha=sign)
        yield
    finally:
        with torch.no_grad():
            for name, value in before.items():
                parameters[name].copy_(value)


def _loss(learned: Learned, examples: Examples) -> float:
    return float(learned.trainer.evaluate(cast(Any, examples))["eval_loss"])


def _device(prior: ConsolidationPrior) -> torch.device:
    return next(iter(prior.anchor.values())).device
