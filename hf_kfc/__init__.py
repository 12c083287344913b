"""Fine-tune on new data without forgetting, and without the old data.

The four names most users need::

    from hf_kfc import ConsolidationArguments, ConsolidationPrior, ConsolidationTrainer
    from hf_kfc import CurvatureArguments

They are imported when they are first asked for, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .curvature import CurvatureArguments, estimate_curvature
    from .priors import ConsolidationPrior
    from .probes import Probes
    from .training import (
        ConsolidationArguments,
        ConsolidationConfig,
        ConsolidationMixin,
        ConsolidationTrainer,
    )

__version__ = "0.2.0"

__all__ = [
    "ConsolidationArguments",
    "ConsolidationConfig",
    "ConsolidationMixin",
    "ConsolidationPrior",
    "ConsolidationTrainer",
    "CurvatureArguments",
    "Probes",
    "__version__",
    "estimate_curvature",
]

_HOMES = {
    "ConsolidationArguments": "training",
    "ConsolidationConfig": "training",
    "ConsolidationMixin": "training",
    "ConsolidationPrior": "priors",
    "ConsolidationTrainer": "training",
    "CurvatureArguments": "curvature",
    "Probes": "probes",
    "estimate_curvature": "curvature",
}


def __getattr__(name: str) -> Any:
    """Import a public name, or the package that holds one, at its first use."""
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    if name in _HOMES.values():
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_HOMES.values()})
