"""Where a prior comes from.

The types of the fields are checked when they are read: no ``from __future__ import annotations``.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from reprlib import repr as short
from statistics import median
from typing import Any, Self

from ..errors import PriorError
from ..schema import COUNT, NUMBER, SIZE, checked, problems_of

__all__ = ["Provenance", "compounded", "summarise_errors"]

# Priors written before there were such lack them.
_LATER = ("merged", "merge_damping", "approximation_errors", "min_token_examples")
_LIBRARIES = ("hf_kfc", "torch", "transformers", "datasets", "accelerate", "safetensors")


def _library_versions() -> dict[str, str]:
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a source tree without installation
            found[name] = "unknown"
    return found


@dataclass(frozen=True)
class Provenance:
    """What a prior was estimated on, and how.

    Args:
        task: Short name of the task, used in logs.
        base_model: Name or path of the model whose parameters are the anchor.
        base_revision: Its revision, if it has one.
        num_examples: Training examples of the task: N_old of the Bayesian strength.
        curvature: Kind of curvature: ``identity``, ``diagonal``, ``kronecker`` ...
        labels: Label kind; None where no data was used.
        sharing: Weight-sharing rule; None where no data was used.
        anchor_metrics: The model's metrics on its task at the anchor, for example accuracy.
        min_examples: Where rare tokens were left out: in how many examples a token had to stand
            to be kept.
        dropped_inputs: How many tokens of each embedding were left out.
        min_token_examples: In how many examples a token had to stand for the curvature to be made
            of it; 0 if it was made of all.
        merged: Of a merged prior, the weight of each task's F in its own, by task.
        merge_damping: Of a merged prior, the damping that its anchor was found for.
        approximation_errors: Of a merged or compressed prior, for each block the most that its F
            is off by, ‖F̃ − F‖ / ‖F‖ in the Frobenius norm.
        library_versions: Versions of the libraries it was made with.
    """

    task: str = field(metadata=checked("a name"))
    base_model: str = field(default="", metadata=checked("a name"))
    base_revision: str | None = field(default=None, metadata=checked("a revision or null"))
    num_examples: int = field(default=0, metadata=checked("a count", COUNT))
    curvature: str = field(default="identity", metadata=checked("a name"))
    labels: str | None = field(default=None, metadata=checked("a name or null"))
    sharing: str | None = field(default=None, metadata=checked("a name or null"))
    anchor_metrics: dict[str, float | int] = field(
        default_factory=dict, metadata=checked("finite numbers by name", NUMBER)
    )
    min_examples: int | None = field(default=None, metadata=checked("a count or null", COUNT))
    dropped_inputs: dict[str, int] = field(
        default_factory=dict, metadata=checked("counts by name", COUNT)
    )
    min_token_examples: int = field(default=0, metadata=checked("a count", COUNT))
    merged: dict[str, float | int] = field(
        default_factory=dict, metadata=checked("weights by task", SIZE)
    )
    merge_damping: float | int | None = field(
        default=None, metadata=checked("a number or null", SIZE)
    )
    approximation_errors: dict[str, float | int] = field(
        default_factory=dict, metadata=checked("relative errors by block", SIZE)
    )
    library_versions: dict[str, str] = field(
        default_factory=_library_versions, metadata=checked("versions by name")
    )

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    def problems(self) -> list[str]:
        """Say which fields hold something else than they should, one phrase per field."""
        problems = problems_of(type(self), vars(self))
        if not problems and (text := json.dumps(self.to_dict(), ensure_ascii=False)):
            try:
                text.encode()
            except UnicodeEncodeError as error:  # half of a character that takes two
                found = text[error.start : error.end]
                problems = [f"{found!r} in a name cannot be written"]
        return [f"provenance: {phrase}" for phrase in problems]

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Rebuild from :meth:`to_dict`.

        Raises:
            PriorError: Fields are unknown, missing or hold something else; all are listed.
        """
        if not isinstance(values, dict):
            raise PriorError(f"provenance is {short(values)}, expected an object")
        names = [f.name for f in fields(cls)]
        problems = [f"provenance has no {name}" for name in names if name not in {*values, *_LATER}]
        problems += [f"provenance has an unknown {name}" for name in values if name not in names]
        problems += [f"provenance: {phrase}" for phrase in problems_of(cls, values)]
        if problems:
            raise PriorError("; ".join(problems))
        return cls(**values)


def summarise_errors(errors: Mapping[str, float]) -> str:
    """Say in words by how much the curvatures of blocks are off."""
    if not errors:
        return "-"
    worst = max(errors, key=lambda name: errors[name])
    return f"largest {errors[worst]:.2%} ({worst}), median {median(errors.values()):.2%}"


def compounded(first: float, second: float) -> float:
    """Bound the relative error of two approximations, the second one of the first one's result.

    With ‖F − F₁‖ ≤ e₁‖F‖ and ‖F₁ − F₂‖ ≤ e₂‖F₁‖, the triangle inequality gives
    ‖F − F₂‖ ≤ (e₁ + e₂ + e₁e₂)‖F‖.
    """
    return first + second + first * second
