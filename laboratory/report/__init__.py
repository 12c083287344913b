"""The report of the experiment over all permutations, made of its results files alone."""

from .loading import Model, load_models
from .measures import Measures, Summary
from .page import ReportArguments, run_report
from .verdict import verdict

__all__ = [
    "Measures",
    "Model",
    "ReportArguments",
    "Summary",
    "load_models",
    "run_report",
    "verdict",
]
