"""Figure 2: the approximations against the exact Fisher of toy CNNs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_kfc.curvature import (
    Curvature,
    CurvatureArguments,
    estimate_curvature,
    exact_block_fisher,
    per_example_gradients,
)
from hf_kfc.ranking import CnnConfig, CnnForMultipleChoice

from .common import Example, quality, relative_error, rounded, train

__all__ = ["cnn_fisher"]

_VOCABULARY, _TOKENS, _CLASSES = 12, 6, 5


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
        train(model, batch, steps=40)
        exact, estimates = _curvatures(model, data)
        models[name] = quality(model, batch) | {
            "num_examples": len(data),
            "errors": {
                block: {
                    kind: relative_error(_matrix(own, block), matrix)
                    for kind, own in estimates.items()
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
        "exact": rounded(exact[rows][:, rows]),
        "kronecker": rounded(kronecker[rows][:, rows]),
        "diagonal": rounded(exact.diagonal()[rows]),
    }
