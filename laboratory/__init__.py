"""Experiments: tiers, comparisons, tables and figures; what the recipes call."""

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
from .grid import GridArguments, grid_table, run_grid
from .methods import METHODS, Method, methods_help
from .permutations import PermutationArguments, run_permutations
from .publish import PublishArguments
from .results import Comparison, Outcome, choose_strength
from .runs import run_tier1, run_tier2, run_tier3
from .stream import StreamArguments, run_stream

__all__ = [
    "METHODS",
    "Comparison",
    "DataArguments",
    "GridArguments",
    "LearningArguments",
    "Method",
    "Outcome",
    "PermutationArguments",
    "PublishArguments",
    "RankerArguments",
    "StreamArguments",
    "Tier1Arguments",
    "Tier2Arguments",
    "Tier3Arguments",
    "choose_strength",
    "command_line",
    "grid_table",
    "made_up",
    "methods_help",
    "run_grid",
    "run_permutations",
    "run_stream",
    "run_tier1",
    "run_tier2",
    "run_tier3",
]
