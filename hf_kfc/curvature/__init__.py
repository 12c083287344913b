"""What the loss looks like around a solution: operators, the estimator and an exact oracle."""

from .blocks import Block, Curvature, Layout
from .discovery import PAPER_IGNORE, find_layers, identity_curvature
from .estimator import CurvatureArguments, estimate_curvature
from .objective import Labels, Outputs, default_forward, default_position_mask
from .operators import OPERATORS, Diagonal, Identity, Kronecker, KroneckerEigen, Operator
from .oracle import exact_block_fisher, hessian_diagonal, per_example_gradients

__all__ = [
    "OPERATORS",
    "PAPER_IGNORE",
    "Block",
    "Curvature",
    "CurvatureArguments",
    "Diagonal",
    "Identity",
    "Kronecker",
    "KroneckerEigen",
    "Labels",
    "Layout",
    "Operator",
    "Outputs",
    "default_forward",
    "default_position_mask",
    "estimate_curvature",
    "exact_block_fisher",
    "find_layers",
    "hessian_diagonal",
    "identity_curvature",
    "per_example_gradients",
]
