"""The laboratory: what compares methods, rivals to the penalty, toys, and reports of results.

Not part of the installed package; see its README.
"""

from . import made_up
from .arguments import (
    DataArguments,
    LearningArguments,
    RankerArguments,
)
from .engine import Experiment, run
from .grid import Grid, GridArguments
from .methods import METHODS, Method, methods_help
from .permutations import PermutationArguments, Permutations
from .report import grid_table
from .stream import Stream, StreamArguments

__all__ = [
    "METHODS",
    "DataArguments",
    "Experiment",
    "Grid",
    "GridArguments",
    "LearningArguments",
    "Method",
    "PermutationArguments",
    "Permutations",
    "RankerArguments",
    "Stream",
    "StreamArguments",
    "grid_table",
    "made_up",
    "methods_help",
    "run",
]
