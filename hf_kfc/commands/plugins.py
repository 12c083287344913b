"""Packages that teach the commands further models and examples, found by their entry points."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from ..text import printable

__all__ = ["GROUP", "load_plugins"]

GROUP = "hf_kfc.plugins"
"""The group of entry points; each is a module that registers what it knows when imported."""


@cache
def load_plugins() -> tuple[str, ...]:
    """Import all installed plugins.

    Returns:
        Why a plugin could not be imported, one sentence each: what it would have known is missing.
    """
    failures = []
    for plugin in sorted(entry_points(group=GROUP)):
        try:
            plugin.load()
        except ImportError as error:  # its requirements are an extra that is not installed
            failures.append(f"plugin '{plugin.name}' is left out: {printable(error)}")
    return tuple(failures)
