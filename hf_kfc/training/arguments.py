"""Arguments of consolidation, on top of the Trainer's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite

import torch
from transformers import TrainingArguments

from ..errors import ConsolidationError

__all__ = ["PENALTY_DTYPES", "ConsolidationArguments"]

PENALTY_DTYPES = {"float32": None, "bfloat16": torch.bfloat16}
"""What matrices are multiplied in; float32 means the parameters' own if that is wider."""


@dataclass
class ConsolidationArguments(TrainingArguments):
    """``TrainingArguments`` plus how strongly old tasks are held on to.

    Args:
        strengths: λ of each prior in ``loss + Σ_i λ_i (θ−θ*_i)ᵀ F_i (θ−θ*_i)``; one number for
            all priors or one for each. The default is the Bayesian value N_old / (2·N_new).
        damping: ε ≥ 0 of every operator: for Kronecker factors
            (A + ε·tr(A)/p·I) ⊗ (G + ε·tr(G)/q·I), for the others ε times their mean diagonal.
        penalty_dtype: What the products with the curvature are computed in. ``"bfloat16"`` rounds
            factors and Δ to 8 binary digits and keeps float32 in sums, values and gradients: F·Δ
            is off by at most about 1 % of ‖F‖·‖Δ‖. That is 0.2 to 0.5 % of F·Δ itself for a
            random Δ, and more for one along directions of little curvature.
        penalty_every: k: the penalty is in every k-th optimizer step, the k-th first, at k times
            its strength. Its gradient then is the same in the mean, at 1/k of the cost; the at most
            k − 1 steps after the last one have none.
        distribute_penalty: In several processes, each multiplies, and moves to its device, only
            its own share of the priors' blocks. The penalty is the same without.
        moved_rows_only: Multiply of an embedding only the rows of tokens that have moved from the
            anchor: the others add 0. The penalty is the same without.
    """

    strengths: list[float] | None = field(
        default=None,
        metadata={
            "help": "Strength λ of the penalty, one number for all priors or one for each "
            "(default: the Bayesian value N_old / (2 N_new))."
        },
    )
    damping: float = field(
        default=0.1,
        metadata={
            "help": "Relative damping of the curvature; 0 trusts it even in directions the old "
            "data never used."
        },
    )
    penalty_dtype: str = field(
        default="float32",
        metadata={
            "help": "Dtype of the products with the curvature: 'float32', or 'bfloat16', which is "
            "faster and off by at most a hundredth of ‖F‖·‖Δ‖ in each layer.",
            "choices": list(PENALTY_DTYPES),
        },
    )
    penalty_every: int = field(
        default=1,
        metadata={
            "help": "Put the penalty in every k-th optimizer step only, at k times its strength."
        },
    )
    distribute_penalty: bool = field(
        default=True,
        metadata={
            "help": "Whether each of several processes multiplies only its share of the priors' "
            "blocks; the penalty is the same."
        },
    )
    moved_rows_only: bool = field(
        default=True,
        metadata={
            "help": "Whether of an embedding only the rows of tokens that have moved from the "
            "anchor are multiplied; the penalty is the same."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        for strength in self.strengths or []:
            if not (isfinite(strength) and strength >= 0):
                raise ConsolidationError(
                    f"strength {strength} is not a number ≥ 0; correct `strengths`"
                )
        if not (isfinite(self.damping) and self.damping >= 0):
            raise ConsolidationError(
                f"damping {self.damping} is not a number ≥ 0; correct `damping`"
            )
        self._check_choices()

    def _check_choices(self) -> None:
        dtypes = "one of " + ", ".join(PENALTY_DTYPES)
        for name, is_right, wanted in (
            ("penalty_dtype", self.penalty_dtype in PENALTY_DTYPES, dtypes),
            ("penalty_every", self.penalty_every >= 1, "a number ≥ 1"),
        ):
            if not is_right:
                raise ConsolidationError(
                    f"{name} {getattr(self, name)} is not {wanted}; correct `{name}`"
                )
