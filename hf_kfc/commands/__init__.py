"""The command line ``hf-kfc``: look at priors, on disk or on the Hub, and hold them to account."""

from .line import main

__all__ = ["main"]
