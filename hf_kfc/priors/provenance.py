"""Where a prior comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from math import inf
from reprlib import repr as short
from statistics import median
from typing import Any, Self, cast

from ..errors import PriorError

__all__ = ["Provenance", "compounded", "summarise_errors"]

_LATER = ("merged", "merge_damping", "approximation_errors")
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
        merged: Of a merged prior, the weight of each task's F in its own, by task.
        merge_damping: Of a merged prior, the damping that its anchor was found for.
        approximation_errors: Of a merged or compressed prior, for each block the most that its F
            is off by, ‖F̃ − F‖ / ‖F‖ in the Frobenius norm.
        library_versions: Versions of the libraries it was made with.
    """

    task: str
    base_model: str = ""
    base_revision: str | None = None
    num_examples: int = 0
    curvature: str = "identity"
    labels: str | None = None
    sharing: str | None = None
    anchor_metrics: dict[str, float] = field(default_factory=dict)
    min_examples: int | None = None
    dropped_inputs: dict[str, int] = field(default_factory=dict)
    merged: dict[str, float] = field(default_factory=dict)
    merge_damping: float | None = None
    approximation_errors: dict[str, float] = field(default_factory=dict)
    library_versions: dict[str, str] = field(default_factory=_library_versions)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    def misfits(self) -> list[str]:
        """Say which fields hold something else than they should, one phrase per field."""
        right = {
            "task": isinstance(self.task, str),
            "base_model": isinstance(self.base_model, str),
            "base_revision": isinstance(self.base_revision, str | None),
            "num_examples": type(self.num_examples) is int and self.num_examples >= 0,
            "curvature": isinstance(self.curvature, str),
            "labels": isinstance(self.labels, str | None),
            "sharing": isinstance(self.sharing, str | None),
            "anchor_metrics": _maps(self.anchor_metrics, (int, float)),
            "min_examples": self.min_examples is None
            or (type(self.min_examples) is int and self.min_examples >= 0),
            "dropped_inputs": _maps(self.dropped_inputs, (int,)),
            "merged": _maps_to_numbers(self.merged),
            "merge_damping": self.merge_damping is None or _is_size(self.merge_damping),
            "approximation_errors": _maps_to_numbers(self.approximation_errors),
            "library_versions": _maps(self.library_versions, (str,)),
        }
        return [
            f"provenance has {name} {short(getattr(self, name))}"
            for name, holds in right.items()
            if not holds
        ]

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Rebuild from :meth:`to_dict`.

        Priors written before there were merged and compressed ones lack their fields.

        Raises:
            PriorError: Unknown or missing fields; all are listed.
        """
        if not isinstance(values, dict):
            raise PriorError(f"provenance is {short(values)}, expected an object")
        names = [f.name for f in fields(cls)]
        problems = [f"provenance has no {name}" for name in names if name not in {*values, *_LATER}]
        problems += [f"provenance has an unknown {name}" for name in values if name not in names]
        if problems:
            raise PriorError("; ".join(problems))
        return cls(**values)


def summarise_errors(errors: Mapping[str, float]) -> str:
    """Say in words by how much curvatures are off.

    Args:
        errors: Relative errors by block.
    """
    if not errors:
        return "-"
    worst = max(errors, key=lambda name: errors[name])
    return f"largest {errors[worst]:.2%} ({worst}), median {median(errors.values()):.2%}"


def compounded(first: float, second: float) -> float:
    """Bound the relative error of two approximations, the second one of the first one's result.

    With ‖F − F₁‖ ≤ e₁‖F‖ and ‖F₁ − F₂‖ ≤ e₂‖F₁‖, the triangle inequality gives
    ‖F − F₂‖ ≤ (e₁ + e₂ + e₁e₂)‖F‖.

    Args:
        first: e₁.
        second: e₂.
    """
    return first + second + first * second


def _maps(value: object, kinds: tuple[type, ...]) -> bool:
    """Whether it is a dict from names to values of these kinds."""
    return isinstance(value, dict) and all(
        isinstance(k, str) and isinstance(v, kinds) for k, v in value.items()
    )


def _maps_to_numbers(value: object) -> bool:
    return _maps(value, (int, float)) and all(
        map(_is_size, cast(dict[str, object], value).values())
    )


def _is_size(value: object) -> bool:
    """Whether it is a finite number that is not negative."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < inf
