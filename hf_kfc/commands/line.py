"""``hf-kfc`` itself: subcommands to make priors and to look at them, and those of plugins."""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import HfKfcError
from ..text import printable
from .options import COMMANDS
from .plugins import plugin_commands

if TYPE_CHECKING:
    from .report import Report

__all__ = ["main"]

_LONGEST = 990  # characters of an error, which stands on a line of less than 1,000


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``hf-kfc``.

    Args:
        arguments: The words after ``hf-kfc``; by default those of this process.

    Raises:
        SystemExit: With status 1 where something does not fit, or, with one line on stderr, for
            the library's own errors and the system's; 2 for arguments that do not parse.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser(words[:1]).parse_args(words)
    # What a command does is imported when its options are known to be right: torch takes seconds.
    module, _, function = options.place.partition(":")
    try:
        command = getattr(import_module(module, __package__), function)
        # Bars of weights, shard by shard.
        import_module("transformers.utils.logging").disable_progress_bar()
        report: Report = command(options)
    # OSError: a full disk, or the Hub's answer; ModuleNotFoundError: an extra is not installed.
    except (HfKfcError, OSError, ModuleNotFoundError) as error:
        print(f"error: {printable(error, _LONGEST)}", file=sys.stderr)  # noqa: T201
        raise SystemExit(1) from None
    as_json = json.dumps(report.values, indent=2, allow_nan=False)
    print(as_json if options.json else report.text)  # noqa: T201
    if report.problems:
        raise SystemExit(1)


def _parser(asked: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-kfc",
        description="Make consolidation priors, look at them, merge and compress them. PRIOR and "
        "MODEL are a folder, or a repository of the Hub as ORG/NAME or ORG/NAME@REVISION.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add_arguments, place in (COMMANDS | plugin_commands()).items():
        text = inspect.getdoc(add_arguments) or ""
        command = commands.add_parser(
            add_arguments.__name__,
            help=text.partition("\n")[0],
            description=text,
            formatter_class=_Help,
        )
        if add_arguments.__name__ in asked:  # of the others the name is enough
            add_arguments(command)
        command.add_argument("--json", action="store_true", help="Print JSON.")
        command.set_defaults(place=place)
    return parser


class _Help(argparse.RawDescriptionHelpFormatter):
    """Examples as they are written, and defaults where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said = action.help or ""
        unsaid = action.default in (None, [], argparse.SUPPRESS) or action.default is False
        return said if unsaid or "(default:" in said else f"{said} (default: %(default)s)"
