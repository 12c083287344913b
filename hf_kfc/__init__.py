"""Fine-tune on new data without forgetting, and without the old data.

The four names most users need::

    from hf_kfc import ConsolidationArguments, ConsolidationPrior, ConsolidationTrainer
    from hf_kfc import CurvatureArguments
"""

from .curvature import CurvatureArguments, estimate_curvature
from .priors import ConsolidationPrior
from .training import ConsolidationArguments, ConsolidationMixin, ConsolidationTrainer

__version__ = "0.2.0"

__all__ = [
    "ConsolidationArguments",
    "ConsolidationMixin",
    "ConsolidationPrior",
    "ConsolidationTrainer",
    "CurvatureArguments",
    "__version__",
    "estimate_curvature",
]
