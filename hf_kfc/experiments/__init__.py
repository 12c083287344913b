"""Experiments: tiers, comparisons, tables and figures; what the recipes call."""

from .arguments import DataArguments, LearningArguments, RankerArguments
from .cli import command_line
from .grid import GridArguments, grid_table, run_grid
from .results import Comparison, Outcome, choose_strength
from .runs import Tier1Arguments, Tier2Arguments, run_tier1, run_tier2

__all__ = [
    "Comparison",
    "DataArguments",
    "GridArguments",
    "LearningArguments",
    "Outcome",
    "RankerArguments",
    "Tier1Arguments",
    "Tier2Arguments",
    "choose_strength",
    "command_line",
    "grid_table",
    "run_grid",
    "run_tier1",
    "run_tier2",
]
