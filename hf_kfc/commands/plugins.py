"""Packages that teach the command line models, examples and commands, found by entry points."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path

from ..text import printable

__all__ = ["GROUP", "load_plugins", "plugin_commands"]

GROUP = "hf_kfc.plugins"
"""The group of entry points; each is a package that registers what it knows when imported.

What it has of commands stands in its ``commands/options.py``, as ``COMMANDS`` of
:mod:`hf_kfc.commands.options` does.
"""


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


def plugin_commands() -> dict[Callable[[ArgumentParser], None], str]:
    """Find the commands of all installed plugins.

    Their file of options is run alone, without the package that it is in, whose imports may take
    seconds: help and a wrong option are to be answered at once.

    Returns:
        For each command, what adds its arguments, and the module and function that runs it.
    """
    found: dict[Callable[[ArgumentParser], None], str] = {}
    for plugin in sorted(entry_points(group=GROUP)):
        try:
            package = find_spec(plugin.module)
        except ModuleNotFoundError:  # of its parent; load_plugins tells it
            continue
        for folder in (package and package.submodule_search_locations) or ():
            spec = spec_from_file_location(
                f"{plugin.module}.commands.options", Path(folder) / "commands" / "options.py"
            )
            if spec and spec.loader and Path(str(spec.origin)).is_file():
                options = module_from_spec(spec)
                spec.loader.exec_module(options)
                found |= options.COMMANDS
    return found
