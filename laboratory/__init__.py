"""The laboratory: what compares methods, rivals to the penalty, toys, and reports of results.

Not part of the installed package; see its README.
"""

from . import made_up
from .arguments import (
    DataArguments,
    LearningArguments,
    RankerArguments,
    Tier1Arguments,
    Tier2Arguments,
    Tier3Arguments,
)
from .cli import command_line
from .engine import Experiment, run
from .grid import Grid, GridArguments
from .methods import METHODS, Method, methods_help
from .permutations import PermutationArguments, Permutations
from .publish import PublishArguments
from .report import grid_table
from .results import Comparison, Outcome, choose_strength
from .runs import run_tier1, run_tier2, run_tier3
from .stream import Stream, StreamArguments

__all__ = [
    "METHODS",
    "Comparison",
    "DataArguments",
    "Experiment",
    "Grid",
    "GridArguments",
    "LearningArguments",
    "Method",
    "Outcome",
    "PermutationArguments",
    "Permutations",
    "PublishArguments",
    "RankerArguments",
    "Stream",
    "StreamArguments",
    "Tier1Arguments",
    "Tier2Arguments",
    "Tier3Arguments",
    "choose_strength",
    "command_line",
    "grid_table",
    "made_up",
    "methods_help",
    "run",
    "run_tier1",
    "run_tier2",
    "run_tier3",
]
