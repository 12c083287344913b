"""Arguments of consolidation, on top of the Trainer's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import isfinite

from transformers import TrainingArguments

from ..errors import ConsolidationError

__all__ = ["ConsolidationArguments"]


@dataclass
class ConsolidationArguments(TrainingArguments):
    """``TrainingArguments`` plus how strongly old tasks are held on to.

    Args:
        strengths: λ of each prior in ``loss + Σ_i λ_i (θ−θ*_i)ᵀ F_i (θ−θ*_i)``; one number for
            all priors or one for each. The default is the Bayesian value N_old / (2·N_new).
        damping: ε ≥ 0 of every operator: for Kronecker factors
            (A + ε·tr(A)/p·I) ⊗ (G + ε·tr(G)/q·I), for the others ε times their mean diagonal.
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
