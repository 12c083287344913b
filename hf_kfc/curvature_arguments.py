"""How a curvature is estimated, in words; imported without torch, so that help comes at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from .errors import CurvatureError
from .values import is_whole

__all__ = ["CurvatureArguments", "Labels", "Products", "Sharing"]

KINDS = ("diagonal", "kronecker", "kronecker_eigen")
FALLBACKS = ("diagonal", "refuse")


class Labels(StrEnum):
    """Whose labels the Fisher is taken over."""

    EMPIRICAL = "empirical"
    """The data's (McInerney et al. 2021, Eq. 3)."""
    SAMPLED = "sampled"
    """One drawn from the model's own distribution, the same for an example in every run."""
    EXACT = "exact"
    """The expectation over the model's own distribution: one backward pass per class."""


class Sharing(StrEnum):
    """How the positions at which one example uses a weight are treated."""

    EXPAND = "expand"
    """As independent (Eschenhagen et al. 2023)."""
    REDUCE = "reduce"
    """By the mean of their inputs and the sum of their gradients (Eschenhagen et al. 2023)."""
    AVERAGE = "average"
    """As independent, and counted as one (McInerney et al. 2021)."""
    CENTRED = "centred"
    """By what differs between them and by what they have in common, a product for each."""


class Products(StrEnum):
    """How the factors of a Kronecker curvature are multiplied."""

    FULL = "full"
    """Every product in full, over every row."""
    SYMMETRIC = "symmetric"
    """One half of each product, over the rows that are not zero: the same up to rounding."""
    BFLOAT16 = "bfloat16"
    """As ``symmetric``, with feed-forward layers and products in bfloat16 and sums in float32."""


@dataclass
class CurvatureArguments:
    """How the curvature of a finished task is estimated."""

    curvature: str = field(
        default="kronecker",
        metadata={
            "help": "Kind of curvature: 'diagonal' (EWC), 'kronecker' (KFC) or "
            "'kronecker_eigen' (EKFAC, a second pass over the data).",
            "choices": KINDS,
        },
    )
    labels: str = field(
        default="empirical",
        metadata={
            "help": "Labels of the Fisher: 'empirical' (the data's), 'sampled' (drawn from the "
            "model) or 'exact' (expectation over the model, one backward pass per class).",
            "choices": tuple(Labels),
        },
    )
    sharing: str = field(
        default="expand",
        metadata={
            "help": "How positions that share a weight are treated: 'expand', 'reduce' "
            "(Eschenhagen et al. 2023), 'average' (McInerney et al. 2021) or 'centred' (what "
            "differs between them, and what they have in common: for rankers).",
            "choices": tuple(Sharing),
        },
    )
    ignore: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Parameters left to move freely: glob patterns of names of parameters or "
            "modules, or class names of modules; 'LayerNorm' is the choice of McInerney et al. "
            "2021."
        },
    )
    fallback: str = field(
        default="diagonal",
        metadata={
            "help": "What a parameter has that no rule covers: 'diagonal' (its exact diagonal, by "
            "one more forward and backward pass of every example alone), or 'refuse'.",
            "choices": FALLBACKS,
        },
    )
    max_curvature_examples: int | None = field(
        default=None,
        metadata={"help": "Estimate on a random part of the examples (default: all)."},
    )
    curvature_batch_size: int = field(
        default=32,
        metadata={"help": "Examples per forward pass and process; does not change the result."},
    )
    curvature_seed: int = field(
        default=0, metadata={"help": "Seed of the random part and of the sampled labels."}
    )
    min_token_examples: int = field(
        default=0,
        metadata={
            "help": "Tokens in fewer of the examples are read as the unknown token, so that no "
            "part of the curvature is made of them; for a prior that leaves the house, 10. As "
            "labels of a language model they are left out."
        },
    )
    unknown_token_id: int | None = field(
        default=None,
        metadata={"help": "The unknown token (default: that of the collator's tokenizer)."},
    )
    products: str = field(
        default="symmetric",
        metadata={
            "help": "How Kronecker factors are multiplied: 'symmetric' (one half of each product, "
            "over the rows that are not zero), 'bfloat16' (the same, with feed-forward layers and "
            "products in bfloat16 and sums in float32) or 'full'.",
            "choices": tuple(Products),
        },
    )

    def __post_init__(self) -> None:
        for own in fields(self):
            value, choices = getattr(self, own.name), own.metadata.get("choices")
            if choices and value not in choices:
                raise CurvatureError(
                    f"unknown {own.name} '{value}'; choose one of {', '.join(choices)}"
                )
        least = {"max_curvature_examples": 1, "curvature_batch_size": 1}
        for name, low in (least | {"min_token_examples": 0, "unknown_token_id": 0}).items():
            given: Any = getattr(self, name)
            if given is None and name in ("max_curvature_examples", "unknown_token_id"):
                continue
            if not is_whole(given) or int(given) < low:
                raise CurvatureError(f"{name} is {given}; give a whole number of at least {low}")
        if not is_whole(self.curvature_seed) or not 0 <= self.curvature_seed < 2**63:
            raise CurvatureError(f"curvature_seed is {self.curvature_seed}; give one below 2**63")
        ignore: Any = self.ignore
        is_list = isinstance(ignore, Sequence) and not isinstance(ignore, str)
        if not is_list or not all(isinstance(pattern, str) for pattern in ignore):
            raise CurvatureError(f"ignore is {ignore!r}; give a list of patterns")
