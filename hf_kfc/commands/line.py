"""``hf-kfc`` itself: one subcommand for each question about priors, and two that make new ones."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from types import ModuleType

from transformers.utils import logging as transformers_logging

from ..errors import HfKfcError
from . import audit, compress, diff, inspect, merge, verify
from .report import Report

__all__ = ["main"]

_COMMANDS: tuple[ModuleType, ...] = (inspect, verify, diff, audit, merge, compress)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``hf-kfc``.

    Args:
        arguments: The words after ``hf-kfc``; by default those of this process.

    Raises:
        SystemExit: With status 1 where something does not fit, or, with one line on stderr, for
            the library's own errors; 2 for arguments that do not parse.
    """
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    options = _parser().parse_args(arguments)
    try:
        report: Report = options.report(options)
    except HfKfcError as error:
        print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)  # noqa: T201
        raise SystemExit(1) from None
    as_json = json.dumps(report.values, indent=2, ensure_ascii=False, allow_nan=False)
    print(as_json if options.json else report.text)  # noqa: T201
    if report.misfits:
        raise SystemExit(1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-kfc",
        description="Look at consolidation priors, merge and compress them. PRIOR and MODEL are a "
        "folder, or a repository of the Hub as ORG/NAME or ORG/NAME@REVISION.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in _COMMANDS:
        text = (module.__doc__ or "").strip()
        command = commands.add_parser(
            module.__name__.rpartition(".")[2],
            help=text.partition("\n")[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(command)
        command.add_argument("--revision", help="Branch, tag or commit of PRIOR.")
        command.add_argument("--json", action="store_true", help="Print JSON.")
        command.set_defaults(report=module.report)
    return parser
