"""Tables, verdicts and pictures, made of results files alone."""

from .grid_table import grid_table
from .measures import Measures, Summary
from .models import Model, load_models
from .page import ReportArguments, run_report
from .stream_table import StreamRuns, stream_table
from .verdict import verdict

__all__ = [
    "Measures",
    "Model",
    "ReportArguments",
    "StreamRuns",
    "Summary",
    "grid_table",
    "load_models",
    "run_report",
    "stream_table",
    "verdict",
]
