"""Tiny models, data and priors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMultipleChoice, PreTrainedModel

from hf_kfc.curvature import (
    Curvature,
    Diagonal,
    Identity,
    Kronecker,
    KroneckerEigen,
    Operator,
    find_layers,
)
from hf_kfc.priors import ConsolidationPrior, Provenance
from hf_kfc.ranking import CandidateCollator, CnnConfig, CnnForMultipleChoice

VOCABULARY = 24
KINDS = ("identity", "diagonal", "kronecker", "kronecker_eigen")
FOR_EVALUATION = -1
"""The ``index`` of an example that is not trained on."""


# Models and data


def bert(dropout: float = 0.0) -> BertForMultipleChoice:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        initializer_range=0.4,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForMultipleChoice(config)


def cnn(dropout: float = 0.0) -> CnnForMultipleChoice:
    torch.manual_seed(0)
    return CnnForMultipleChoice(CnnConfig(vocab_size=VOCABULARY, hidden_size=8, dropout=dropout))


MODELS: dict[str, Callable[..., PreTrainedModel]] = {"bert": bert, "cnn": cnn}


def make_examples(count: int = 10, seed: int = 1) -> list[dict[str, Any]]:
    """Encoded examples of 2 to 4 candidates of 5 to 9 tokens each."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int, size: int = 1) -> list[int]:
        return torch.randint(low, high, (size,), generator=generator).tolist()

    examples = []
    for index in range(count):
        lengths = draw(5, 10, draw(2, 5)[0])
        examples.append(
            {
                "index": index,
                "input_ids": [draw(1, VOCABULARY, n) for n in lengths],
                "token_type_ids": [[0] * (n - 2) + [1] * 2 for n in lengths],
                "labels": draw(0, len(lengths))[0],
            }
        )
    return examples


@dataclass
class Collator:
    """The library's collator, and a note of which examples went into each training batch."""

    masked: bool = True
    seen: list[list[int]] = field(default_factory=list)

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        indices = [example["index"] for example in examples]
        if FOR_EVALUATION not in indices:
            self.seen.append(indices)
        batch = CandidateCollator(SimpleNamespace(pad_token_id=0))(examples)
        return {k: v for k, v in batch.items() if self.masked or k != "candidate_mask"}


# Priors


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
