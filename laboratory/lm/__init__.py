"""A pretrained language model learns a domain; what it forgets is measured on public sets."""

from .arguments import LmArguments
from .methods import LM_METHODS, LmMethod
from .stage import run_lm

__all__ = ["LM_METHODS", "LmArguments", "LmMethod", "run_lm"]
