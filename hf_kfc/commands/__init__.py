"""The command line ``hf-kfc``: look at priors, hold them to account, merge and compress them."""

from .line import main

__all__ = ["main"]
