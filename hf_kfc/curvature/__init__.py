"""What the loss looks like around a solution: operators, the estimator and an exact oracle."""

from ..curvature_arguments import CurvatureArguments, Labels
from .blocks import Block, Curvature, Layout
from .compressor import Compressed, Compressor
from .discovery import PAPER_IGNORE, find_layers, identity_curvature, survey, unwrapped
from .estimator import estimate_curvature
from .layers import LayerRule, register_rule
from .likelihood import Family, Outputs
from .nearest_sum import Merged, merge, merge_sharing
from .objective import default_forward, default_position_mask
from .operators import (
    OPERATORS,
    Diagonal,
    Identity,
    Kronecker,
    KroneckerEigen,
    KroneckerStack,
    KroneckerSum,
    LowRankKronecker,
    LowRankKroneckerStack,
    LowRankKroneckerSum,
    Operator,
    Solution,
    register_operator,
    relative_difference,
)
from .oracle import exact_block_fisher, per_example_gradients

__all__ = [
    "OPERATORS",
    "PAPER_IGNORE",
    "Block",
    "Compressed",
    "Compressor",
    "Curvature",
    "CurvatureArguments",
    "Diagonal",
    "Family",
    "Identity",
    "Kronecker",
    "KroneckerEigen",
    "KroneckerStack",
    "KroneckerSum",
    "Labels",
    "LayerRule",
    "Layout",
    "LowRankKronecker",
    "LowRankKroneckerStack",
    "LowRankKroneckerSum",
    "Merged",
    "Operator",
    "Outputs",
    "Solution",
    "default_forward",
    "default_position_mask",
    "estimate_curvature",
    "exact_block_fisher",
    "find_layers",
    "identity_curvature",
    "merge",
    "merge_sharing",
    "per_example_gradients",
    "register_operator",
    "register_rule",
    "relative_difference",
    "survey",
    "unwrapped",
]
