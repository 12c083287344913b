"""From a command line to a call: readable help, one-line errors, quiet libraries."""

from __future__ import annotations

import logging
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter
from collections.abc import Callable
from typing import Any

from transformers import HfArgumentParser

from hf_kfc.errors import HfKfcError

from .processes import check_processes

__all__ = ["command_line"]


class _Help(ArgumentDefaultsHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the script's own text as it is and shows defaults that the help does not tell."""

    def _get_help_string(self, action: Action) -> str | None:
        told = action.default is None or "(default" in (action.help or "")
        return action.help if told else super()._get_help_string(action)


def command_line(
    run: Callable[..., None],
    argument_classes: tuple[Any, ...],
    description: str | None,
    name: str | None = None,
) -> None:
    """Parse the command line into dataclasses and call a function with them.

    Args:
        run: Called with one instance of each class.
        argument_classes: Dataclasses for ``HfArgumentParser``.
        description: Shown by ``--help``.
        name: Of a command of the laboratory, the first word of its command line.

    Raises:
        SystemExit: With status 1 and one line on stderr for the library's own errors, 2 for
            arguments that do not parse.
    """
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    try:
        parser = HfArgumentParser(
            argument_classes,
            prog=None if name is None else f"python -m laboratory {name}",
            description=description,
            formatter_class=_Help,
        )
        words = sys.argv[1 if name is None else 2 :]
        arguments: Any = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
        *arguments, unknown = arguments
        if unknown:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        check_processes()
        run(*arguments)
    except HfKfcError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(1) from None
