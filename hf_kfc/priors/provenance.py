"""Where a prior comes from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self

__all__ = ["Provenance"]

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
    library_versions: dict[str, str] = field(default_factory=_library_versions)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Rebuild from :meth:`to_dict`.

        Raises:
            TypeError: An unknown or missing field.
        """
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise TypeError(f"unknown provenance fields {', '.join(sorted(unknown))}")
        return cls(**values)
