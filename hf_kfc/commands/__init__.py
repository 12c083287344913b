"""The command line ``hf-kfc``: estimate priors, look at them, hold them to account, make others."""

from .line import main

__all__ = ["main"]
